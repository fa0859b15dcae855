"""The number of workers that a cluster has room for, and the errors if there is too little."""

import pytest

from raydpo import config
from raydpo.errors import ConfigError
from raydpo.runtime.resources import Node, fit_together, reference_group, train_group

LAPTOP = [Node(cpus=8, gpus=0)]
GPU_NODES = [
    Node(cpus=0, gpus=0),
    Node(cpus=64, gpus=8, labels={"role": "train"}),
    Node(cpus=64, gpus=8, labels={"role": "train"}),
    Node(cpus=16, gpus=4, labels={"role": "ref"}),
]


def test_a_laptop_gives_one_worker_all_its_cpus() -> None:
    group = train_group(config.from_flat({}), LAPTOP)
    assert (group.workers, group.gpus, group.cpus) == (1, 0, 8)
    assert train_group(config.from_flat({"num_workers": 2}), LAPTOP).cpus == 4


def test_all_gpus_are_used() -> None:
    group = train_group(config.from_flat({}), GPU_NODES)
    assert (group.workers, group.gpus) == (20, 1)


def test_labels_select_nodes() -> None:
    job = config.from_flat({"worker_label_selector": "role=train", "reference_label_selector": "role=ref"})
    assert train_group(job, GPU_NODES).workers == 16
    assert reference_group(job, GPU_NODES).workers == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 9}, "num_workers=9 .* room for 8"),
        ({"gpus_per_worker": 1}, "room for 0"),
        ({"worker_label_selector": "role=train"}, "no node has the labels"),
        ({"num_workers": 2, "cpus_per_worker": 5}, "room for 1"),
    ],
)
def test_workers_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_group(config.from_flat(options), LAPTOP)


@pytest.mark.parametrize(
    ("options", "fit"),
    [
        ({}, False),  # each group takes all CPUs
        ({"cpus_per_worker": 4, "reference_cpus_per_worker": 4}, True),
        ({"cpus_per_worker": 5, "reference_cpus_per_worker": 4}, False),
        ({"cpus_per_worker": 4, "reference_cpus_per_worker": 4, "worker_resources": '{"tpu": 1}'}, False),
    ],
)
def test_both_groups_fit_on_a_laptop_only_if_cpus_are_left(options: dict[str, object], fit: bool) -> None:
    job = config.from_flat(options)
    assert fit_together([train_group(job, LAPTOP), reference_group(job, LAPTOP)], LAPTOP) is fit


@pytest.mark.parametrize(("workers", "scorers", "fit"), [(16, 4, True), (17, 4, False), (12, 8, True)])
def test_both_groups_fit_on_gpu_nodes_only_if_gpus_are_left(workers: int, scorers: int, fit: bool) -> None:
    job = config.from_flat({"num_workers": workers, "reference_num_workers": scorers})
    assert fit_together([train_group(job, GPU_NODES), reference_group(job, GPU_NODES)], GPU_NODES) is fit


@pytest.mark.parametrize("nodes", [[Node(cpus=2, gpus=0)], LAPTOP, GPU_NODES])
def test_scoring_workers_fit_next_to_train_workers_if_the_reference_is_synced(nodes: list[Node]) -> None:
    job = config.from_flat({"sync_ref_model": True})
    train, reference = train_group(job, nodes), reference_group(job, nodes)
    assert fit_together([train, reference], nodes)
    assert train.workers == reference.workers == max(sum(int(node.gpus) for node in nodes), 1)
    assert train.gpus == 0 or 0.5 < train.gpus < 1, "no two train workers fit on one GPU"
    explicit = config.from_flat({"sync_ref_model": True, "gpus_per_worker": 1, "reference_gpus_per_worker": 1})
    if train.gpus:
        assert (train_group(explicit, nodes).gpus, train_group(explicit, nodes).workers) == (1, 20)
        assert not fit_together([train_group(explicit, nodes), reference_group(explicit, nodes)], nodes)
        separate_nodes = {"worker_label_selector": "role=train", "reference_label_selector": "role=ref"}
        assert reference_group(config.from_flat({"sync_ref_model": True, **separate_nodes}), nodes).gpus == 1
        half_of_the_gpus = config.from_flat({"sync_ref_model": True, "gpus_per_worker": 1, "num_workers": 10})
        assert reference_group(half_of_the_gpus, nodes).gpus == 1, "a GPU is not shared if gpus_per_worker is set"
