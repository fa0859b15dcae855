"""What a run does otherwise than its options say, told once and kept for summary.json."""


class Notes:
    """Texts for the user, in the order in which they came up."""

    def __init__(self) -> None:
        """Start without a note."""
        self.texts: list[str] = []

    def add(self, *texts: str) -> None:
        """Print each text that is new as a line of its own, and keep it."""
        for text in texts:
            if text not in self.texts:
                self.texts.append(text)
                print(f"note: {text}", flush=True)
