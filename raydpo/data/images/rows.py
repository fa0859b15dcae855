"""Read and process the images of a row's pair, and count them."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from raydpo.data.dialects.pair import ImageExpansion, Pair, RowError
from raydpo.data.images.expansion import check_free_of, placed
from raydpo.data.images.pictures import names_a_file, open_picture, stamp, stamped_file
from raydpo.data.images.processing import ImageProcessing

KEY_CHARACTERS = 16
"""Number of characters of a digest by which images are counted, and found missing."""
UNREAD = "unread"
"""In the place of a stamp: a URL that could not be read, which is tried again in each run."""


@dataclass(frozen=True)
class ImageCounts:
    """Counts of the images of good and bad rows."""

    read: int = 0
    """Number of images that were read, each time that a row has them."""
    processed: int = 0
    """Number of images whose tensors were computed; those of the others were in the store."""
    keys: Set[str] = field(default_factory=frozenset)
    """The beginnings of the digests of the different images."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Stamps (`pictures.stamp`) of the local files that were read or missing, and UNREAD for URLs that were not read:
    where one is another in a later run, the rows are tokenized again."""

    @property
    def distinct(self) -> int:
        """Number of different images."""
        return len(self.keys)


def total_images(parts: Iterable[ImageCounts]) -> ImageCounts:
    """Return the counts of several blocks together, without files."""
    found = list(parts)
    keys = frozenset().union(*(part.keys for part in found))
    return ImageCounts(sum(part.read for part in found), sum(part.processed for part in found), keys)


@dataclass
class ImageReader:
    """Reads the images of the rows of one shard, and counts them."""

    processing: ImageProcessing
    tokenizer: PreTrainedTokenizerBase
    shard_url: str
    cache_dir: str
    _read: int = 0
    _processed: int = 0
    _keys: set[str] = field(default_factory=set)
    _files: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> ImageCounts:
        """Counts of the images so far."""
        return ImageCounts(self._read, self._processed, frozenset(self._keys), self._files)

    def read(self, pair: Pair) -> Pair:
        """Return a pair with its images in the store and their places in the prompt.

        Raises RowError where an image cannot be read or has no place, and DataError where the model's processor cannot
        be used.
        """
        token = self.processing.identity.token
        if not pair.images:
            if token:
                check_free_of(pair, token)
            return pair
        pair = self._templated(placed(pair, token, bool(self.tokenizer.chat_template)))
        found = []
        for source in pair.images:
            image = self.processing.process(self._opened(source), self.tokenizer, self.cache_dir)
            found.append(image)
            self._read += 1
            self._processed += image.is_new
            self._keys.add(image.digest[:KEY_CHARACTERS])
        texts, digests = tuple(image.text for image in found), tuple(image.digest for image in found)
        return replace(pair, images=(), expansion=ImageExpansion(token, texts, digests))

    def _opened(self, source: Any) -> Any:
        """Return the picture at a source, and note its file."""
        file = stamped_file(source, self.shard_url)
        if file is not None:
            self._files[file[0]] = file[1]
        try:
            return open_picture(source, self.shard_url)
        except RowError:
            if file is None and isinstance(source, str) and names_a_file(source):
                self._files[source] = UNREAD
            raise

    def _templated(self, pair: Pair) -> Pair:
        """Return a conversation with the processor's own chat template, where the tokenizer has another."""
        template = self.processing.identity.chat_template
        if template is None or not pair.conversational or "chat_template" in pair.chat_template_kwargs:
            return pair
        return replace(pair, chat_template_kwargs={**pair.chat_template_kwargs, "chat_template": template})


def changed_file(counts: ImageCounts) -> str | None:
    """Return a file of images that is another than when these counts were made; None if all are the same."""
    return next((name for name, known in counts.files.items() if known == UNREAD or stamp(name) != known), None)


def lack_of_images(processing: ImageProcessing, pair: Pair) -> RowError | None:
    """Return why the images of a pair cannot be read by the model, as the reason of its row; None if they can."""
    if not pair.images or not processing.fault:
        return None
    return RowError("no image processor", f"the row has {len(pair.images)} images; {processing.fault}")
