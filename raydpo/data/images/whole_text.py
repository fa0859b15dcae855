"""Expand a text by the model's processor, where the text of an image depends on what stands beside it, as for Idefics2.

The processor is given blank pictures and stopped where it hands the expanded text to its tokenizer. That holds only for
a processor whose texts do not depend on the pictures, which `ImageProcessing` proves first.
"""

from typing import Any


class _Recorded(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class _Recorder:
    """A stand-in for a tokenizer that stops at the first text it is to encode."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: Any, *arguments: Any, **options: Any) -> Any:
        raise _Recorded(text if isinstance(text, str) else text[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def whole_text(processor: Any, tokenizer: Any, token: str, text: str) -> str:
    """Return a text as the processor hands it to its tokenizer, with one picture for each image token in it.

    Raises what the processor raises on the text.
    """
    from PIL import Image

    pictures = [Image.new("RGB", (16, 16)) for _ in range(text.count(token))]
    processor.tokenizer = _Recorder(tokenizer)
    try:
        processor(text=[text], images=pictures or None, add_special_tokens=False)
    except _Recorded as found:
        return found.text
    finally:
        processor.tokenizer = tokenizer
    return text
