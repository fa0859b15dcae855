"""The files of a model's folder beside its weights and config, which an export takes over.

They are what a tokenizer, a processor, generation and a model's own code are loaded from. Which of them a model needs
is known to its classes alone, so that all files of the kinds in question are taken, but for what belongs to other
weights or to an earlier training.
"""

import fnmatch
import os
import shutil
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.hub import CHAT_TEMPLATE_DIR, CHAT_TEMPLATE_FILE

from raydpo.models.source import SIDE_FILES
from raydpo.runtime import storage

OTHERS = (
    "config.json",
    "*.index.json",
    "adapter_config.json",
    "trainer_state.json",
    "*_results.json",
    "requirements*.txt",
)
"""Files of the kinds in `SIDE_FILES` that are written anew, or that belong to other weights or an earlier training."""
FOR_MODELS = ("generation_config.json",)
"""Files that say nothing of an adapter."""
CODE = "*.py"


def write_side_files(source: str, folder: str, tokenizer: PreTrainedTokenizerBase, *, adapter: bool = False) -> None:
    """Copy the side files of the folder `source`, and write the tokenizer over them.

    A chat template that replaced the tokenizer's own is the only one in the export. Python files are copied where a
    config names classes in them; those of an adapter's base model stay with it.
    """
    names = sorted(entry.name for entry in os.scandir(source) if entry.is_file())
    code = any("auto_map" in _read(source, name) for name in names if _matches(name, ("*config.json",)))
    if adapter:
        code = "auto_map" in _read(source, "tokenizer_config.json")
    kinds = (*SIDE_FILES, CODE) if code else SIDE_FILES
    left = OTHERS + (FOR_MODELS if adapter else ())
    for name in names:
        if _matches(name, kinds) and not _matches(name, left):
            shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))
    template: Any = tokenizer.chat_template
    if isinstance(template, str) and template != _template_of(source):  # the option chat_template is one text
        _replace_templates(folder, template)
    tokenizer.save_pretrained(folder)


def _replace_templates(folder: str, template: str) -> None:
    """Write the template into each file that has one, or remove what can only be the old one."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(".jinja"):
            os.remove(os.path.join(folder, name))
        elif name in ("chat_template.json", "processor_config.json", "preprocessor_config.json"):
            content = _read(folder, name)
            if "chat_template" in content:
                storage.write_json(os.path.join(folder, name), content | {"chat_template": template})


def _template_of(folder: str) -> Any:
    """Return the chat template of the tokenizer in a folder; None if it has none, or several in files."""
    path = os.path.join(folder, CHAT_TEMPLATE_FILE)
    if not os.path.isfile(path):
        return _read(folder, "tokenizer_config.json").get("chat_template")
    if os.path.isdir(os.path.join(folder, CHAT_TEMPLATE_DIR)):
        return None
    with open(path, encoding="utf-8") as file:
        return file.read()


def _read(folder: str, name: str) -> dict[str, Any]:
    """Return the content of a JSON file, or {} where there is none."""
    path = os.path.join(folder, name)
    try:
        content = storage.read_json(path) if os.path.isfile(path) else {}
    except ValueError:  # a file that is no JSON is copied as it is
        return {}
    return content if isinstance(content, dict) else {}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
