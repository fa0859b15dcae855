"""The files beside the weights of an export: complete, and with one chat template."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from raydpo.config import AdapterConfig
from raydpo.models.adapters import add_lora
from raydpo.models.export import ExportTarget, export_adapter, export_model
from raydpo.models.loading import load_causal_lm, load_tokenizer
from raydpo.models.source import resolve_model
from tests.models.bases import make_base
from tests.models.partitioned import no_gather

FILES = {
    "tokenizer.model": "sentencepiece",
    "vocabulary.tiktoken": "ranks",
    "merges.txt": "a b",
    "preprocessor_config.json": '{"size": 224}',
    "processor_config.json": '{"chat_template": "old"}',
    "video_preprocessor_config.json": "{}",
    "chat_template.json": '{"chat_template": "old"}',
    "generation_config.json": '{"temperature": 0.5, "do_sample": true}',
    "own_tokenizer.py": "x = 1\n",
}
LEFT = {"optimizer.pt": "", "trainer_state.json": "{}", "eval_results.json": "{}", "training_args.bin": "", "notes": ""}


def export(base: Path, out: Path, *, adapter: bool, template: str | None = None) -> dict[str, str]:
    """Export an untrained model or adapter, and return the text of its files but for weights."""
    source = resolve_model(str(base), None)
    model: Any = load_causal_lm(source, dtype="float32", attn_implementation=None, trust_remote_code=False)
    if adapter:
        model = add_lora(model, AdapterConfig(lora_r=2))
    tokenizer = load_tokenizer(source, trust_remote_code=False, chat_template=template)
    target = ExportTarget(str(out), source, tokenizer, is_main=True)
    (export_adapter if adapter else export_model)(model, target, no_gather)
    return {path.name: path.read_text() for path in out.iterdir() if path.suffix != ".safetensors"}


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    """Return the folder of a model with all kinds of files."""
    folder = make_base(tmp_path / "base", tiny_model, "llama")
    for name, text in {**FILES, **LEFT}.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("adapter", [False, True])
def test_tokenizer_processor_and_generation_files_are_copied(adapter: bool, base: Path, tmp_path: Path) -> None:
    tokenizer_config = json.loads((base / "tokenizer_config.json").read_text())
    names = {"AutoTokenizer": ["own_tokenizer.Own", None]}
    (base / "tokenizer_config.json").write_text(json.dumps(tokenizer_config | {"auto_map": names}))
    written = export(base, tmp_path / "out", adapter=adapter)
    expected = {name: text for name, text in FILES.items() if not (adapter and name == "generation_config.json")}
    assert expected == {name: text for name, text in written.items() if name in FILES}
    assert not LEFT.keys() & written.keys()
    assert ("config.json" in written) is not adapter
    assert json.loads(written["tokenizer_config.json"])["auto_map"] == names


def test_code_is_copied_only_where_a_config_names_it(base: Path, tmp_path: Path) -> None:
    assert "own_tokenizer.py" not in export(base, tmp_path / "out", adapter=False)
    processor = {"auto_map": {"AutoProcessor": "own_tokenizer.Own"}}
    (base / "processor_config.json").write_text(json.dumps(processor))
    assert "own_tokenizer.py" in export(base, tmp_path / "out", adapter=False)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_chat_template_of_the_options_is_the_only_one(
    legacy: bool, adapter: bool, base: Path, tmp_path: Path
) -> None:
    if legacy:
        config = json.loads((base / "tokenizer_config.json").read_text())
        text = (base / "chat_template.jinja").read_text()
        (base / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": text}))
        (base / "chat_template.jinja").unlink()
    assert "old" in export(base, tmp_path / "same", adapter=adapter)["chat_template.json"]
    new = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    written = export(base, tmp_path / "out", adapter=adapter, template=new)
    assert written["chat_template.jinja"] == new
    assert json.loads(written["chat_template.json"]) == json.loads(written["processor_config.json"])
    assert json.loads(written["chat_template.json"]) == {"chat_template": new}
    assert json.loads(written["tokenizer_config.json"]).get("chat_template") in (None, new)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "[a]"
