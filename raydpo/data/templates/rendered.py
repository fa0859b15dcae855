"""The texts of a pair, ready to be encoded."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DroppedWords:
    """Words of a row that the chat template has dropped, in a row that is trained on all the same."""

    kind: str
    """One of the kinds in `probe`."""
    example: str
    """Some of the words, quoted."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The three texts of a pair that are encoded."""

    prompt: str
    """The prompt; in conversations, with the generation prompt of the template."""
    with_chosen: str
    with_rejected: str
    dropped: tuple[DroppedWords, ...] = ()
    """One entry per kind of words that the template has dropped."""

    @property
    def sides(self) -> tuple[str, str]:
        """Prompt + chosen and prompt + rejected."""
        return self.with_chosen, self.with_rejected

    @property
    def begins_with_prompt(self) -> bool:
        """Whether both texts begin with the prompt, generation prompt included."""
        return all(side.startswith(self.prompt) for side in self.sides)
