"""The manifests, the configs and the image: KubeRay accepts them, and they match each other and this package."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydpo.config import JobConfig, parse

ROOT = Path(__file__).parents[2]
IN_IMAGE = "/opt/raydpo/"
MANIFESTS = sorted((ROOT / "cluster" / "kuberay").glob("rayjob-*.yaml"))
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
VALIDATOR = ROOT.parent / "shared" / "kuberay" / "validate_crd.py"
UNITS = {"Gi": 2**30, "Ti": 2**40}

each_manifest = pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)


def load(path: Path) -> dict[str, Any]:
    """Return the only document of a manifest."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the head group and the worker groups."""
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    """Return the container that Ray runs in, which is the first one of the pod."""
    first: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return first


def volume(group: dict[str, Any], mount_path: str) -> dict[str, Any]:
    """Return the volume that is mounted at `mount_path`."""
    (name,) = [mount["name"] for mount in container(group)["volumeMounts"] if mount["mountPath"] == mount_path]
    (found,) = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == name]
    return dict(found)


def size(text: str) -> int:
    """Return the bytes of a Kubernetes quantity such as 64Gi."""
    return int(text[:-2]) * UNITS[text[-2:]]


def config_of(entrypoint: str) -> JobConfig:
    """Return the config that the entrypoint's flags give, with the image's paths replaced by those of this checkout."""
    program, script, *flags = shlex.split(entrypoint)
    assert program == "python"
    assert script == f"{IN_IMAGE}jobs/dpo.py"
    return parse([flag.replace(IN_IMAGE, f"{ROOT}/") if flag.endswith(".yaml") else flag for flag in flags]).job


def test_there_are_manifests_and_configs() -> None:
    assert MANIFESTS
    assert CONFIGS


@each_manifest
def test_a_manifest_is_valid_by_the_schema_of_kuberay(path: Path) -> None:
    if not VALIDATOR.exists():
        pytest.skip("KubeRay's schemas are not next to this checkout (../shared/kuberay)")
    done = subprocess.run([sys.executable, str(VALIDATOR), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@each_manifest
def test_a_manifest_is_valid_by_the_rules_of_the_operator(path: Path) -> None:
    """Check the rules of KubeRay's own validation that are not part of its schema."""
    job = load(path)
    cluster = job["spec"]["rayClusterSpec"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    assert len(job["metadata"]["name"]) <= 47
    assert cluster["authOptions"]["mode"] == "token"
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)
    assert job["spec"]["backoffLimit"] >= 0
    assert job["spec"]["activeDeadlineSeconds"] > 0
    names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
    assert len(names) == len(set(names))
    for group in groups(job):
        params = group.get("rayStartParams", {})
        assert "labels" not in params
        assert not ("resources" in group and {"num-cpus", "num-gpus", "memory", "resources"} & set(params))
        for key, value in group.get("labels", {}).items():
            assert re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", key)
            assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", value)


@each_manifest
def test_the_groups_have_a_fixed_size_and_the_head_runs_no_tasks(path: Path) -> None:
    job = load(path)
    assert "--entrypoint-num-cpus" not in str(job)
    assert not [key for key in job["spec"] if key.startswith("entrypointNum")]  # would never fit on the head
    assert groups(job)[0]["resources"] == {"CPU": "0"}
    for group in groups(job)[1:]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        # Ray Data skips nodes with this label unless it is configured to use only these.
        assert "ray-subcluster" not in group["labels"]


@each_manifest
def test_all_pods_have_the_shared_volume_and_memory_for_the_object_store(path: Path) -> None:
    claim = load(ROOT / "cluster" / "kuberay" / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups(load(path)):
        shared = volume(group, "/mnt/shared")
        assert shared["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        memory = container(group)["resources"]["limits"]["memory"]
        shm_size = size(volume(group, "/dev/shm")["emptyDir"]["sizeLimit"])
        assert 0.3 * size(memory) <= shm_size < 0.5 * size(memory)
        assert container(group)["resources"]["requests"] == container(group)["resources"]["limits"]


@each_manifest
def test_the_entrypoint_fits_the_groups(path: Path) -> None:
    job = load(path)
    config = config_of(job["spec"]["entrypoint"])
    assert (ROOT / "jobs" / "dpo.py").is_file()
    for workers, selector in [
        (config.cluster.num_workers, config.cluster.worker_label_selector),
        (config.reference.reference_num_workers, config.reference.reference_label_selector),
    ]:
        fitting = [group for group in groups(job)[1:] if selector.items() <= group["labels"].items()]
        gpus = sum(
            group["replicas"] * int(container(group)["resources"]["limits"].get("nvidia.com/gpu", 0))
            for group in fitting
        )
        assert workers == gpus
    for folder in (config.run.output_dir, config.data.cache_dir):
        assert folder is not None
        assert folder.startswith("/mnt/shared/")
    assert config.run.resume_from_checkpoint == "auto"  # otherwise a retry would start from the beginning


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_config_parses(path: Path) -> None:
    config = parse(["--config", str(path)]).job
    assert config.model.model_name_or_path is not None
    assert config.data.dataset_name
    assert f"--config jobs/configs/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_config_states_its_global_batch(path: Path) -> None:
    stated = re.search(r"= (\d+) pairs per update", path.read_text(encoding="utf-8"))
    assert stated is not None
    config = parse(["--config", str(path)]).job
    assert config.cluster.num_workers is not None
    assert config.global_batch(config.cluster.num_workers) == int(stated[1])


def test_versions_agree() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    dockerfile = (ROOT / "cluster" / "docker" / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pinned['ray']}-" in dockerfile
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for path in MANIFESTS:
        job = load(path)
        assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]
        for group in groups(job):
            assert container(group)["image"].endswith(f"/raydpo:{version[1]}")


def test_the_image_copies_files_that_exist() -> None:
    dockerfile = (ROOT / "cluster" / "docker" / "Dockerfile").read_text()
    assert f"WORKDIR {IN_IMAGE.rstrip('/')}\n" in dockerfile
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for name in line.split()]
    assert {"raydpo", "jobs", "constraints.txt"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
