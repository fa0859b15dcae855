"""Finding a model by its name, in a folder or on the hub, and the errors for names and files that are wrong."""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from transformers import LlamaForCausalLM

from raydpo.errors import ModelError
from raydpo.models.loading import load_tokenizer
from raydpo.models.source import ModelSource, local_folder, resolve_model, weight_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the snapshot in a hub cache that holds the tiny model as `someone/tiny`; there is no network."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(tiny_model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_folder_is_used_as_it_is(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)
    source = resolve_model(tiny_model.name, "main")
    assert source == ModelSource(name=tiny_model.name, folder=str(tiny_model), revision=None)


def test_a_hub_id_is_resolved_to_its_snapshot_and_commit(hub_cache: Path) -> None:
    source = resolve_model("someone/tiny", None)
    assert (source.name, Path(source.folder).resolve(), source.revision) == ("someone/tiny", hub_cache, COMMIT)
    assert load_tokenizer(source, trust_remote_code=False).eos_token == "<eos>"


def test_a_node_without_the_folder_finds_the_same_commit(hub_cache: Path) -> None:
    source = ModelSource("someone/tiny", "/elsewhere/snapshots/" + COMMIT, COMMIT)
    assert Path(local_folder(source)).resolve() == hub_cache


def test_a_local_folder_missing_on_a_node_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"not on this node.*storage that every node mounts"):
        local_folder(ModelSource("models/mine", "/elsewhere/models/mine", None))


@pytest.mark.parametrize(
    ("name", "message"),
    [("someone/unknown", "cannot be downloaded"), ("/no/such/folder", "neither a folder here nor a hub id")],
)
@pytest.mark.usefixtures("hub_cache")
def test_an_unknown_name_is_an_error(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model(name, None)
    assert name in str(caught.value)


def test_only_needed_files_are_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    side_files = [
        "config.json",
        "tokenizer.json",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
    ]
    other_files = [
        "README.md",
        "consolidated.safetensors",
        "original/config.json",
        "onnx/model.onnx",
        "model.fp16.safetensors",
    ]
    safetensors = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    old_weights = ["pytorch_model.bin"]
    code = ["modeling_own.py"]

    def fetched(stored: list[str], trust: bool) -> set[str]:
        """Return the files that are downloaded; a fake download writes the files that pass the real filter."""
        folder = tmp_path / str(len(os.listdir(tmp_path))) / COMMIT
        folder.mkdir(parents=True)

        def download(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
            for path in filter_repo_objects(stored, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
                (folder / path).parent.mkdir(exist_ok=True)
                content = {"weight_map": {"a": safetensors[0], "b": safetensors[1]}} if "index" in path else {}
                (folder / path).write_text(json.dumps(content))
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert resolve_model("someone/tiny", "v1", trust_remote_code=trust).revision == COMMIT
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    assert fetched(side_files + other_files + safetensors + old_weights + code, trust=False) == {
        *side_files,
        *safetensors,
    }
    assert fetched(side_files + other_files + old_weights + code, trust=True) == {*side_files, *old_weights, *code}


def test_a_folder_without_weights_or_config_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    copy_of = shutil.copytree(tiny_model, tmp_path / "copy")
    os.remove(copy_of / "model.safetensors")
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        resolve_model(str(copy_of), None)
    os.remove(copy_of / "config.json")
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(copy_of), None)


def test_a_missing_weight_file_is_named(tiny_model: Path, tmp_path: Path) -> None:
    LlamaForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    files = weight_files(str(tmp_path / "sharded"))
    assert len(files) > 2
    os.remove(files[1])
    with pytest.raises(ModelError, match=f"lacks 1 of {len(files)} weight files.*{os.path.basename(files[1])}"):
        resolve_model(str(tmp_path / "sharded"), None)
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelError, match=r"index\.json is not an index of weight files"):
        resolve_model(str(tmp_path / "sharded"), None)


def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is a LoRA adapter.*model_adapter_name"):
        resolve_model(str(tmp_path), None)
