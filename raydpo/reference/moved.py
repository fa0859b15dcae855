"""References that change while the policy trains (TR-DPO), and scores that the feed asks for.

Imports no torch, as the feed comes by here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raydpo.reference.awaited import AwaitedStore
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.store import ReferenceStore, ScoredBlock
from raydpo.schema import Block


@dataclass(frozen=True)
class MovedReference:
    """A reference that was in force, or is."""

    identity: ReferenceIdentity
    folder: str = ""
    """Its weights or, with LoRA, its adapter; empty for the first, which is as the run's options say."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it."""
        return {"folder": self.folder, "identity": self.identity.to_dict()}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "MovedReference":
        """ReferenceMismatch as `ReferenceIdentity.from_dict` has it."""
        return MovedReference(ReferenceIdentity.from_dict(content["identity"]), content["folder"])


@dataclass(frozen=True)
class Asked:
    """Blocks, or parts of blocks, that are wanted scored by a reference."""

    name: str
    """Of the reference and the positions in the run that it is for."""
    reference: MovedReference
    blocks: tuple[Block, ...]
    """In the order that they are read in."""


@dataclass
class AskedStore:
    """Reads blocks as `ReferenceStore` does, of the reference that was last asked for; waits until they are scored."""

    cache_dir: str
    failure: str = field(default="", init=False)
    """Why no more blocks will come; empty while they may."""
    asked: Asked | None = field(default=None, init=False)
    """What is to be scored for now."""

    @property
    def digest(self) -> str:
        """What names the reference in force."""
        return self.asked.reference.identity.digest if self.asked else ""

    def ask(self, asked: Asked) -> None:
        """From here on read these blocks' scores."""
        store = AwaitedStore(ReferenceStore(self.cache_dir, asked.reference.identity))
        store.failure = self.failure  # it holds for whatever is asked for after it
        self._store, self.asked = store, asked

    def fail(self, message: str) -> None:
        """No more blocks will come."""
        self.failure = message
        if self.asked:
            self._store.failure = message

    def read(self, block: Block) -> ScoredBlock:
        """A block's pairs and scores, once they are there; `ReferenceMismatch` where they will not come."""
        return self._store.read(block)
