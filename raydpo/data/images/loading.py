"""Load the processor of a model's folder for its images; what cannot be loaded is a fault that rows with images get.

A processor of videos needs torchvision, and no video is read here: where torchvision is not installed, the processor is
loaded without it.
"""

import hashlib
import json
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from raydpo.data.images.processing import ImageIdentity, ImageProcessing

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Files of a model's folder of which a model that takes images has at least one."""
_LOAD_ERRORS = (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RuntimeError)
_NO_IMAGES = (
    "the model {name!r} takes no images: its folder has neither processor_config.json nor preprocessor_config.json "
    "with an image processor; use a vision-language model with its processor's files, or drop the images of the data"
)


def no_images(name: str) -> ImageProcessing:
    """Return the record of a model that takes no images."""
    return ImageProcessing(ImageIdentity("", "", None), None, _NO_IMAGES.format(name=name))


def load_image_processing(
    folder: str, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool, own_template: bool = False
) -> ImageProcessing:
    """Return how the model in a folder reads images, or why it reads none.

    `own_template` is whether the user gave the chat template, which then holds for rows with images too.
    """
    name = tokenizer.name_or_path or folder
    if not _has_image_processor(folder):
        return no_images(name)
    if find_spec("PIL") is None:
        return _faulty(f"the images of the data need the package Pillow; `pip install pillow` on every node ({name!r})")
    try:
        processor = _load(folder, trust_remote_code)
    except _LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:400]
        return _faulty(
            f"the processor of {name!r}, which the images of the data need, cannot be loaded: {type(error).__name__}: "
            f"{reason}; install what is missing on every node, or correct the processor's files"
        )
    token = getattr(processor, "image_token", None)
    if getattr(processor, "image_processor", None) is None or not token:
        return _faulty(
            f"the processor of {name!r}, as transformers loads it, is a {type(processor).__name__} without an image "
            "processor or an image token; correct processor_class in processor_config.json, set trust_remote_code if "
            "it comes with its own code, use another vision-language model, or drop the images of the data"
        )
    template = None if own_template else _template(processor)
    if template == tokenizer.chat_template:
        template = None
    return ImageProcessing(
        ImageIdentity(_digest(processor), str(getattr(token, "content", token)), template), processor
    )


def _faulty(fault: str) -> ImageProcessing:
    return ImageProcessing(ImageIdentity("", "", None), None, fault)


def _has_image_processor(folder: str) -> bool:
    """Return whether a file of the folder describes an image processor; that of a model of speech does not."""
    for name in PROCESSOR_FILES:
        content = _json(os.path.join(folder, name))
        if content.get("image_processor") or content.get("image_processor_type") or content.get("image_mean"):
            return True
        if "feature_extractor_type" not in content and content.get("processor_class"):
            return True
    return False


def _json(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _load(folder: str, trust_remote_code: bool) -> Any:
    """Return the processor in a folder, without its processor of videos where that cannot be loaded."""
    from transformers import AutoProcessor

    if find_spec("torchvision") is None and (kind := _with_videos(folder)) is not None:
        return _without_videos(kind, folder, trust_remote_code)
    return AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)


def _with_videos(folder: str) -> Any:
    """Return the processor's class if transformers has it and it takes a processor of videos; else None."""
    from transformers.models.auto import processing_auto

    files = [_json(os.path.join(folder, name)) for name in (*PROCESSOR_FILES, "tokenizer_config.json")]
    name = next((content["processor_class"] for content in files if content.get("processor_class")), None)
    if name is None:
        names: dict[str, Any] = processing_auto.PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]
        name = names.get(_json(os.path.join(folder, "config.json")).get("model_type", ""))
    found: Any = processing_auto.processor_class_from_name(name) if isinstance(name, str) else None
    return found if found is not None and "video_processor" in found.get_attributes() else None


def _without_videos(kind: Any, folder: str, trust_remote_code: bool) -> Any:
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    loaders: dict[str, Any] = {
        "tokenizer": AutoTokenizer,
        "image_processor": AutoImageProcessor,
        "feature_extractor": AutoFeatureExtractor,
    }

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else kind.check_argument_for_proper_class(self, name, part)

    def arguments(cls: Any, path: str, /, processor_dict: Any = None, **options: Any) -> list[Any]:
        names = [name for name in cls.get_attributes() if name != "video_processor"]
        if unknown := set(names) - set(loaders):
            raise ValueError(f"{kind.__name__} takes {min(unknown)}, and torchvision is not installed")
        return [
            None if name == "video_processor" else loaders[name].from_pretrained(path, **options)
            for name in cls.get_attributes()
        ]

    members = {"check_argument_for_proper_class": check, "_get_arguments_from_pretrained": classmethod(arguments)}
    tolerant: Any = type(kind.__name__, (kind,), members)
    processor = tolerant.from_pretrained(folder, trust_remote_code=trust_remote_code)
    processor.__class__ = kind
    return processor


def _template(processor: Any) -> str | None:
    """Return the processor's own chat template, if it has one."""
    template = getattr(processor, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _digest(processor: Any) -> str:
    """Return the SHA-256 (hex) of what decides about tensors and texts of images; never of a path.

    The code is that of transformers, of which the first two parts of the version count.
    """
    images = processor.image_processor
    own = {
        name: value
        for name, value in vars(processor).items()
        if isinstance(value, str | int | float | bool | None) and name != "chat_template" and not name.startswith("_")
    }
    parts = [
        ".".join(version("transformers").split(".")[:2]),
        type(processor).__name__,
        json.dumps(own, sort_keys=True),
        json.dumps(getattr(processor, "images_kwargs", None), sort_keys=True, default=str),
        type(images).__name__,
        json.dumps(_config(images), sort_keys=True, default=str),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _config(images: Any) -> dict[str, Any]:
    """Return the settings of an image processor as it writes them, without where they come from."""
    settings = json.loads(images.to_json_string())
    unrelated = ("_name_or_path", "name_or_path", "processor_class", "auto_map")
    return {name: value for name, value in settings.items() if name not in unrelated}
