"""The READMEs say what is so."""

import pytest

from tests.config.option_table import PARTS, ROOT, replaced


@pytest.mark.parametrize("file", sorted(PARTS))
def test_the_tables_are_up_to_date(file: str) -> None:
    assert (ROOT / file).read_text() == replaced(file), "run: python -m tests.config.option_table"
