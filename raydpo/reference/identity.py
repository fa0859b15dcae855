"""What is kept of a reference to know it by; `reference.digest` works it out.

Imports no torch: the feed, which loads no model, comes by here, and training waits for it to start.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raydpo.errors import ReferenceMismatch

DIGEST_LENGTH = 24
"""Hex characters of a digest in file names: 96 bits."""


@dataclass(frozen=True)
class ReferenceIdentity:
    """What log-probs depend on beside the token ids. SHA-256 digests in hex."""

    weights: str
    """Of each weight's name, type, shape and bytes, in whatever files they lie."""
    architecture: str
    """Of the parts of config.json that change the forward, and of the model's own Python code."""
    adapter: str | None
    """Of the adapter's weights and settings; None without one."""
    numerics: str
    """How the scorer computes (such as dtype and attention), as JSON with sorted keys."""

    @property
    def digest(self) -> str:
        """The whole identity in `DIGEST_LENGTH` hex characters."""
        return sha256(canonical(asdict(self)))[:DIGEST_LENGTH]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it."""
        return {"digest": self.digest, **asdict(self)}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "ReferenceIdentity":
        """ReferenceMismatch where fields are absent, or where the digest written is not that of the fields."""
        try:
            identity = ReferenceIdentity(
                **{field: content[field] for field in ("weights", "architecture", "adapter", "numerics")}
            )
        except KeyError as error:
            raise ReferenceMismatch(f"a stored reference identity lacks {error}; score the reference again") from error
        if content.get("digest", identity.digest) != identity.digest:
            raise ReferenceMismatch(
                f"a stored reference identity says {content['digest']} but its fields give {identity.digest}; "
                "it was edited or cut off: score the reference again"
            )
        return identity


def sha256(text: str) -> str:
    """The text's SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(content: object) -> str:
    """The content as JSON, of which there is one for equal content."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
