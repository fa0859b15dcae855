"""References that change while the policy trains (TR-DPO), and scores that the feed asks for.

Imports no torch, as the feed comes by here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raydpo.blocks.schema import Block
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.readers import WaitingReader


@dataclass(frozen=True)
class ReferenceVersion:
    """A reference that was in force, or is."""

    identity: ReferenceIdentity
    folder: str = ""
    """Its weights or, with LoRA, its adapter; empty for the first, which is as the run's options say."""

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "ReferenceVersion":
        """From what `dataclasses.asdict` makes of it; ReferenceMismatch as `ReferenceIdentity.from_dict` has it."""
        return ReferenceVersion(ReferenceIdentity.from_dict(content["identity"]), content["folder"])


@dataclass(frozen=True)
class ScoringRequest:
    """Blocks, or parts of blocks, that are wanted scored by a reference."""

    name: str
    """Of the reference and the positions in the run that it is for."""
    reference: ReferenceVersion
    blocks: tuple[Block, ...]
    """In the order that they are read in."""


@dataclass
class OnDemandReader(WaitingReader):
    """Reads blocks' scores by the reference that was last asked for."""

    asked: ScoringRequest | None = field(default=None, init=False)
    """What is to be scored for now."""

    def ask(self, asked: ScoringRequest) -> None:
        """From here on read these blocks' scores."""
        self.store = replace(self.store, identity=asked.reference.identity)
        self.asked = asked
