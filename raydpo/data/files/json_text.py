"""Parse JSON text that stands inside a column, by the rules of JSON files."""

import json
from typing import Any

from raydpo.data.dialects.pair import RowError


def parse_json_text(text: str) -> Any:
    """Return the value of JSON text. Raises RowError if it is broken."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError("broken JSON", str(error)) from error
