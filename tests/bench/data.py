"""Data of the benchmark: synthetic pairs of given token lengths, a tokenizer that yields them, and random models."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]
Row = dict[str, str]

VOCABULARY = 32_000
MAX_LENGTH = 1024
GROUP = 16
"""Number of pairs whose lengths together have exactly the profile's means, so that sides that train on different
numbers of pairs can be compared."""
EOS, PAD = "<eos>", "<pad>"
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxz", "aeiouy"
SYLLABLES = tuple(consonant + vowel for consonant in CONSONANTS for vowel in VOWELS)


@dataclass(frozen=True)
class Profile:
    """Lognormal lengths of prompts and completions, in tokens; completions include their EOS token."""

    title: str
    means: tuple[int, int, int]
    """Mean lengths of prompt, chosen and rejected, in tokens."""
    sigmas: tuple[float, float, float]
    """Standard deviations of the logarithms of the three lengths."""


PROFILES = {
    # These sigmas give random batches of 4 and 8 pairs the padding factors 1.9 and 2.3 of the real HH data.
    "hh": Profile("HH-like", (165, 78, 79), (0.7, 0.9, 0.9)),
    "long": Profile("Long answers", (34, 398, 138), (0.7, 0.7, 0.7)),
}


def lengths(profile: Profile, pairs: int, seed: int) -> Lengths:
    """Return the lengths of prompt, chosen and rejected of each pair in tokens, [pairs, 3].

    Prompt plus completion is never longer than MAX_LENGTH. Each GROUP of pairs draws one length from each of GROUP
    equally likely ranges, independently for the three columns, and is then scaled to the profile's means.
    """
    draw = np.random.default_rng(seed)
    groups = [_group(profile, draw) for _ in range(-(-pairs // GROUP))]
    return np.concatenate(groups)[:pairs]


def _group(profile: Profile, draw: np.random.Generator) -> Lengths:
    columns = []
    for mean, sigma in zip(profile.means, profile.sigmas, strict=True):
        quantiles = (draw.permutation(GROUP) + draw.random(GROUP)) / GROUP
        drawn = np.exp([sigma * NormalDist().inv_cdf(quantile) for quantile in quantiles])
        columns.append(drawn * mean / drawn.mean())
    prompts = np.clip(columns[0], 4, MAX_LENGTH // 2)
    for _ in range(20):  # what the limit cuts off is distributed over the other pairs of the group
        prompts = np.clip(prompts * profile.means[0] / prompts.mean(), 4, MAX_LENGTH // 2).round()
        for side in (1, 2):
            columns[side] *= profile.means[side] / columns[side].mean()
            columns[side] = np.clip(columns[side], 2, MAX_LENGTH - prompts).round()
    return np.stack([prompts, *columns[1:]], axis=1).astype(np.int64)


def words() -> list[str]:
    """Return the synthetic words: all of two syllables, and as many of three as fit into the vocabulary."""
    two = [one + other for one in SYLLABLES for other in SYLLABLES]
    room = VOCABULARY - 2 - 256 - 2 * len(SYLLABLES) - len(two)
    return two + [two[index % len(two)] + SYLLABLES[7 + index // len(two)] for index in range(room)]


class Texts:
    """A generator of random texts with a given number of tokens."""

    def __init__(self, seed: int) -> None:
        """Create a generator; the same seed gives the same texts."""
        self._draw = np.random.default_rng(seed)
        self._words = np.array(words())

    def __call__(self, tokens: int) -> str:
        """Return a text of words, each preceded by a space and one token long."""
        return "".join(f" {word}" for word in self._draw.choice(self._words, tokens))


def rows(profile: Profile, pairs: int, seed: int) -> list[Row]:
    """Return pairs with the columns prompt, chosen and rejected; the completions' lengths include the EOS token."""
    text = Texts(seed + 1)
    return [
        {"prompt": text(prompt)[1:], "chosen": text(chosen - 1), "rejected": text(rejected - 1)}
        for prompt, chosen, rejected in lengths(profile, pairs, seed)
    ]


PAIRS_PER_PROMPT, COMPLETIONS_PER_PROMPT = 8, 5


def rows_of_shared_prompts(profile: Profile, pairs: int, seed: int, *, shared: bool) -> list[Row]:
    """Return PAIRS_PER_PROMPT different pairs per prompt, formed from COMPLETIONS_PER_PROMPT ranked completions.

    With shared=False the first word of the prompt differs from pair to pair and everything else stays equal, so that
    pairs have the same lengths and share no prefix.
    """
    text = Texts(seed + 1)
    ranks = [(better, worse) for better in range(COMPLETIONS_PER_PROMPT) for worse in range(better)][:PAIRS_PER_PROMPT]
    result = []
    for lengths_of_prompt in _lengths_of_prompts(profile, -(-pairs // PAIRS_PER_PROMPT), seed):
        prompt, completions = text(lengths_of_prompt[0])[1:], [text(size - 1) for size in lengths_of_prompt[1:]]
        for better, worse in ranks:
            if not shared:
                prompt = text(1)[1:] + " " + prompt.split(" ", 1)[1]
            result.append({"prompt": prompt, "chosen": completions[better], "rejected": completions[worse]})
    return result[:pairs]


def _lengths_of_prompts(profile: Profile, prompts: int, seed: int) -> Iterator[Sequence[int]]:
    """Yield the lengths of each prompt and its completions.

    The completions take their lengths from successive pairs of `lengths`, and the prompt from the first of these pairs.
    """
    pairs_per_prompt = -(-COMPLETIONS_PER_PROMPT // 2)
    drawn = lengths(profile, prompts * pairs_per_prompt, seed)
    for part in drawn.reshape(prompts, pairs_per_prompt, 3):
        yield [int(part[0, 0]), *map(int, part[:, 1:].flatten()[:COMPLETIONS_PER_PROMPT])]


def write_rows(path: Path, content: Sequence[Row]) -> Path:
    """Write rows as JSONL and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer of VOCABULARY entries that encodes each word with its space as one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    space = "Ġ"
    entries, merges = [EOS, PAD, *sorted(pre_tokenizers.ByteLevel.alphabet())], []
    for syllable in SYLLABLES:
        entries.append(syllable)
        merges.append((syllable[0], syllable[1]))
    for syllable in SYLLABLES:
        entries.append(space + syllable)
        merges.append((space, syllable))
    for word in words():
        entries.append(space + word)
        merges.append((space + word[:-2], word[-2:]))
    tokenizer = Tokenizer(models.BPE(vocab={entry: index for index, entry in enumerate(entries)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD).save_pretrained(folder)


@dataclass(frozen=True)
class ModelShape:
    """The architecture and sizes of a model with random weights."""

    title: str
    architecture: str
    """transformers model type: llama or qwen2."""
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    """Whether the head shares the weights of the input embedding."""


SMALL = ModelShape("Llama, 22M parameters", "llama", 256, 864, 6, 4, 4, VOCABULARY, tied=False)
TINY = ModelShape("Llama, 2M parameters", "llama", 32, 64, 2, 4, 2, VOCABULARY, tied=False)
QWEN_SHAPES = (
    ModelShape("Qwen2 shape, 0.5B parameters", "qwen2", 896, 4864, 24, 14, 2, 151_936, tied=True),
    ModelShape("Qwen2 shape, 1.5B parameters", "qwen2", 1536, 8960, 28, 12, 2, 151_936, tied=True),
)


def write_model(folder: Path, shape: ModelShape) -> int:
    """Write a model with random float32 weights and the tokenizer, and return its number of parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        shape.architecture,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2 * MAX_LENGTH,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return sum(parameter.numel() for parameter in model.parameters())
