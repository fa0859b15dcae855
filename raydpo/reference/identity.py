"""The identity of a reference: digests of everything that its log-probs depend on, apart from the token ids.

`reference.fingerprint` computes them. Imports no torch: the feed, which loads no model, imports this module.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raydpo.errors import ReferenceMismatch

DIGEST_LENGTH = 24
"""Number of hex characters of a digest in file names: 96 bits."""


@dataclass(frozen=True)
class ReferenceIdentity:
    """SHA-256 digests (hex) of what a reference's log-probs depend on, apart from the token ids."""

    weights: str
    """Digest of each weight's name, dtype, shape and bytes, whatever files they are in."""
    architecture: str
    """Digest of the entries of config.json that change the forward, and of Python code that comes with the model."""
    adapter: str | None
    """Digest of the LoRA adapter's weights and settings; None without an adapter."""
    numerics: str
    """How the scoring workers compute (such as dtype and attention), as JSON with sorted keys."""

    @property
    def digest(self) -> str:
        """Digest of the whole identity, in `DIGEST_LENGTH` hex characters."""
        return sha256(canonical(asdict(self)))[:DIGEST_LENGTH]

    def to_dict(self) -> dict[str, Any]:
        """Return the identity as a mapping for JSON, which `from_dict` reads."""
        return {"digest": self.digest, **asdict(self)}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "ReferenceIdentity":
        """Read an identity. Raises ReferenceMismatch where fields are missing or do not fit the digest."""
        try:
            identity = ReferenceIdentity(
                **{field: content[field] for field in ("weights", "architecture", "adapter", "numerics")}
            )
        except KeyError as error:
            raise ReferenceMismatch(f"a stored reference identity lacks {error}; score the reference again") from error
        if content.get("digest", identity.digest) != identity.digest:
            raise ReferenceMismatch(
                f"a stored reference identity says {content['digest']} but its fields give {identity.digest}; "
                "it was edited or truncated: score the reference again"
            )
        return identity


def sha256(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(content: object) -> str:
    """Return the content as canonical JSON: equal content gives equal text."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
