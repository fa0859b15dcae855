"""Tiny processors of four kinds of vision-language models, as transformers has them, and folders as the hub has them.

Each kind has an image processor of transformers at a small size, a byte-level tokenizer with the special tokens of its
family, and a chat template in the manner of its family. A picture takes between 4 and some 30 tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)

KINDS = ("llava", "qwen2_vl", "gemma3", "idefics3")

PATCH = 4
"""Side of a patch of a picture in pixels, of all kinds."""
SIDE = 16
"""Side of a picture in pixels as the vision towers of LLaVA, Gemma 3 and Idefics3 see it; Qwen2-VL takes any size."""
GEMMA3_TOKENS = 4
"""Tokens per picture for Gemma 3: its 16 patches are averaged to 4."""
IDEFICS3_TOKENS = 4
"""Tokens per tile of a picture for Idefics3, with a scale_factor of 2."""

_ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
_TOKENS = {
    "llava": ["<image>"],
    "qwen2_vl": "<|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>".split(),
    "gemma3": "<start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <image_soft_token>".split(),
    "idefics3": ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *_ROWS],
}
_NAMED = {
    "gemma3": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
}
_EOS = {"qwen2_vl": "<|im_end|>"}


def _template(before: str, image: str, after: str, generation: str, start: str = "") -> str:
    """Return a chat template that writes `before`, the content and `after` for each message."""
    content = (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    )
    turns = "{% for message in messages %}" + before + content + after + "{% endfor %}"
    return start + turns + "{% if add_generation_prompt %}" + generation + "{% endif %}"


TEMPLATES = {
    "llava": _template(
        "{% if message['role'] == 'assistant' %}ASSISTANT: {% elif message['role'] == 'user' %}USER: {% endif %}",
        "<image>\n",
        "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}",
        "ASSISTANT: ",
    ),
    "qwen2_vl": _template(
        "<|im_start|>{{ message['role'] }}\n",
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "gemma3": _template(
        "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n",
        "<start_of_image>",
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
        "{{ bos_token }}",
    ),
    "idefics3": _template("{{ message['role'] | capitalize }}: ", "<image>", "<end_of_utterance>\n", "Assistant: "),
}


@dataclass(frozen=True)
class TinyProcessor:
    """A processor, and the ids that the config of a model that fits it must have."""

    kind: str
    processor: Any
    """The processor of transformers."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, which has the chat template too."""
        tokenizer: PreTrainedTokenizerFast = self.processor.tokenizer
        return tokenizer

    @property
    def image_token(self) -> str:
        """The token that a chat template, or plain text, has in place of a picture."""
        return str(self.processor.image_token)

    @property
    def image_token_id(self) -> int:
        """The id at which the model puts the features of a picture."""
        token = _NAMED.get(self.kind, {}).get("image_token", self.image_token)
        found: int = self.tokenizer.convert_tokens_to_ids(token)
        return found

    def token_id(self, token: str) -> int:
        """Return the id of a special token, such as `<|vision_start|>`."""
        found: int = self.tokenizer.convert_tokens_to_ids(token)
        return found

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.tokenizer)

    def save(self, folder: Path) -> Path:
        """Write the files of the processor into a model's folder, as repositories on the hub have them."""
        self.tokenizer.save_pretrained(folder)
        image_processor = self.processor.image_processor
        content = json.loads(image_processor.to_json_string())
        content["processor_class"] = type(self.processor).__mro__[_OWN[self.kind]].__name__
        content["image_processor_type"] = type(image_processor).__name__.removesuffix("Pil")
        (folder / "preprocessor_config.json").write_text(json.dumps(content))
        (folder / "processor_config.json").write_text(
            json.dumps({"processor_class": content["processor_class"], **_arguments(self.kind)})
        )
        return folder


class _WithoutVideo(Qwen2VLProcessor):
    """Qwen2-VL's processor without the processor of videos, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Check the other arguments."""
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)


_OWN = {"llava": 0, "qwen2_vl": 1, "gemma3": 0, "idefics3": 0}
"""Position of transformers' class among the classes of a processor."""


def _arguments(kind: str) -> dict[str, Any]:
    """Return the further arguments of the processor of a kind."""
    arguments: dict[str, dict[str, Any]] = {
        "llava": {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        "gemma3": {"image_seq_length": GEMMA3_TOKENS},
        "idefics3": {"image_seq_len": IDEFICS3_TOKENS},
    }
    return arguments.get(kind, {})


def build_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return the byte-level tokenizer of a kind; that of Gemma 3 and LLaVA adds BOS in front of text."""
    special = ["<pad>", "</s>", "<s>", *_TOKENS[kind]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if kind in ("llava", "gemma3"):
        start = [("<s>", vocabulary["<s>"])]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=start)
    named = _NAMED.get(kind, {})
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=_EOS.get(kind, "</s>"),
        pad_token="<pad>",
        padding_side="left",
        additional_special_tokens=[token for token in _TOKENS[kind] if token not in named.values()],
        **named,
    )
    fast.add_special_tokens({"additional_special_tokens": _TOKENS[kind]}, replace_extra_special_tokens=False)
    fast.chat_template = TEMPLATES[kind]
    return fast


def build_processor(kind: str) -> TinyProcessor:
    """Return the processor of a kind, which is one of KINDS."""
    tokenizer, side = build_tokenizer(kind), {"height": SIDE, "width": SIDE}
    shared: dict[str, Any] = {"tokenizer": tokenizer, "chat_template": tokenizer.chat_template, **_arguments(kind)}
    if kind == "llava":
        images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=side)
        return TinyProcessor(kind, LlavaProcessor(image_processor=images, **shared))
    if kind == "qwen2_vl":
        images = Qwen2VLImageProcessor(
            patch_size=PATCH, merge_size=2, temporal_patch_size=2, min_pixels=16 * 16, max_pixels=32 * 32
        )
        return TinyProcessor(kind, _WithoutVideo(image_processor=images, video_processor=None, **shared))
    if kind == "gemma3":
        return TinyProcessor(kind, Gemma3Processor(image_processor=Gemma3ImageProcessor(size=side), **shared))
    images = Idefics3ImageProcessor(
        size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=True
    )
    return TinyProcessor(kind, Idefics3Processor(image_processor=images, **shared))


def picture(number: int, width: int = 20, height: int = 16) -> Image.Image:
    """Return an RGB picture of noise; another one for each number."""
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)
