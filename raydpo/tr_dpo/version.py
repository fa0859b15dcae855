"""A version of a reference that changes during training (TR-DPO), and the blocks that it has to score.

Imports no torch: the feed, which loads no model, imports this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raydpo.blocks.schema import Block
from raydpo.reference.identity import ReferenceIdentity


@dataclass(frozen=True)
class ReferenceVersion:
    """The reference of one sync interval."""

    identity: ReferenceIdentity
    folder: str = ""
    """Folder of its weights or, with LoRA, of its adapter; empty for the first version, which the options name."""

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "ReferenceVersion":
        """Read what `dataclasses.asdict` made of a version. Raises ReferenceMismatch where its identity is damaged."""
        return ReferenceVersion(ReferenceIdentity.from_dict(content["identity"]), content["folder"])


@dataclass(frozen=True)
class ScoringRequest:
    """Blocks, or parts of blocks, that a version of the reference has to score."""

    name: str
    """Digest of the version and the positions in the run that the request covers; equal names are equal requests."""
    version: ReferenceVersion
    blocks: tuple[Block, ...]
    """The blocks, in the order in which training reads them."""
