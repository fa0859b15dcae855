"""The number of workers of each stage, and the cluster resources of each worker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydpo.config import JobConfig
from raydpo.errors import ConfigError


@dataclass(frozen=True)
class Node:
    """The resources and labels of a node of the cluster."""

    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    """Amount of each Ray resource, custom ones included."""


@dataclass(frozen=True)
class WorkerGroup:
    """A number of workers with the same resources each."""

    workers: int
    gpus: float
    """GPUs per worker; with 0, workers run on CPU."""
    cpus: float
    """CPUs per worker, and the number of threads that torch uses."""
    resources: Mapping[str, float]
    """Custom Ray resources per worker."""
    label_selector: Mapping[str, str]
    """Labels that a worker's node must have."""

    @property
    def gpu(self) -> bool:
        """Whether the workers compute on GPUs."""
        return self.gpus > 0


def cluster_nodes() -> list[Node]:
    """Return the nodes of the Ray cluster that this process has joined."""
    import ray  # not above: train workers' plans are unpickled by processes that need only the records of this module

    return alive_nodes(ray.nodes())


def alive_nodes(described: Sequence[Mapping[str, Any]]) -> list[Node]:
    """Return the nodes that are alive, from the node descriptions of `ray.nodes()`."""
    alive = ((node["Resources"], node.get("Labels", {})) for node in described if node["Alive"])
    return [Node(resources.get("CPU", 0), resources.get("GPU", 0), labels, resources) for resources, labels in alive]


GPU_TOLERANCE = 1e-6
"""Tolerance for rounding errors in sums of GPU fractions."""
TRAIN_SHARE = 0.6
"""Share of each GPU, and of the CPUs, for train workers if scoring workers run at the same time and the user sets no
amounts. It is more than half, so that Ray never places two train workers on one GPU."""


def train_group(job: JobConfig, nodes: Sequence[Node]) -> WorkerGroup:
    """Return the group of train workers. Raises ConfigError if the cluster has no room for them."""
    cluster = job.cluster
    return _group(
        "num_workers",
        ResourceRequest(
            cluster.num_workers,
            cluster.gpus_per_worker,
            cluster.cpus_per_worker,
            TRAIN_SHARE if job.reference.sync_ref_model else 1.0,
            divided=_divides(job),
        ),
        cluster.worker_resources,
        cluster.worker_label_selector,
        nodes,
    )


def reference_group(job: JobConfig, nodes: Sequence[Node]) -> WorkerGroup:
    """Return the group of scoring workers. Raises ConfigError if the cluster has no room for them.

    They may take all matching GPUs: if there is no room for both groups, the pool releases them before training starts.
    """
    reference = job.reference
    return _group(
        "reference_num_workers",
        ResourceRequest(
            reference.reference_num_workers,
            reference.reference_gpus_per_worker,
            reference.reference_cpus_per_worker,
            1 - TRAIN_SHARE if reference.sync_ref_model else 1.0,
            divided=_divides(job),
        ),
        reference.reference_resources,
        reference.reference_label_selector,
        nodes,
    )


def fit_together(groups: Sequence[WorkerGroup], nodes: Sequence[Node]) -> bool:
    """Return whether the nodes have room for all groups at the same time, with each worker on the first that fits."""
    free = [_Free(node) for node in nodes]
    return all(any(left.take(group) for left in free) for group in groups for _ in range(group.workers))


class _Free:
    """The free resources of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._left = {**node.resources, "CPU": node.cpus}
        self._gpus = [1.0] * int(node.gpus)
        """Free fraction of each GPU: Ray gives a worker whole GPUs, or a fraction of a single one."""

    def take(self, group: WorkerGroup) -> bool:
        """Allocate the resources of one worker of the group; return False, and allocate nothing, if it does not fit."""
        request = {**group.resources, "CPU": group.cpus}
        part, count = (group.gpus, 1) if 0 < group.gpus < 1 else (1.0, int(group.gpus))
        gpus = [index for index, left in enumerate(self._gpus) if left >= part - GPU_TOLERANCE][:count]
        fits = all(self._left.get(name, 0) >= amount for name, amount in request.items()) and len(gpus) == count
        if not fits or not group.label_selector.items() <= self._node.labels.items():
            return False
        self._left.update({name: self._left.get(name, 0) - amount for name, amount in request.items()})
        for index in gpus:
            self._gpus[index] -= part
        return True


@dataclass(frozen=True)
class ResourceRequest:
    """The resources that the user asked for; fields that are None are derived from the cluster."""

    workers: int | None
    gpus: float | None
    """GPUs per worker."""
    cpus: int | None
    """CPUs per worker."""
    share: float
    """Share of the CPUs for the group if `cpus` is None, and of each GPU if `gpus` is None and `divided` is set."""
    divided: bool
    """Whether each GPU is divided between a train worker and a scoring worker."""


def _divides(job: JobConfig) -> bool:
    """Return whether a scoring worker shares a GPU with a train worker.

    It does not if the user sets the GPUs of either, or selects different nodes for them.
    """
    cluster, reference = job.cluster, job.reference
    gpus_unset = cluster.gpus_per_worker is None and reference.reference_gpus_per_worker is None
    return (
        reference.sync_ref_model and gpus_unset and cluster.worker_label_selector == reference.reference_label_selector
    )


def _group(
    flag: str,
    request: ResourceRequest,
    resources: Mapping[str, float],
    selector: Mapping[str, str],
    nodes: Sequence[Node],
) -> WorkerGroup:
    """Return the group for a request, with unset amounts derived from the nodes that match the selector.

    Raises ConfigError, which names `flag`, if no node matches or the nodes have too little room.
    """
    fitting = [node for node in nodes if selector.items() <= node.labels.items()]
    if not fitting:
        raise ConfigError(f"no node has the labels {dict(selector)}; {_labels_hint(nodes)}")
    all_gpus = any(node.gpus for node in fitting)
    gpus = request.gpus if request.gpus is not None else all_gpus * (request.share if request.divided else 1.0)
    workers = request.workers
    if workers is None:
        gpus_each = gpus if request.gpus is not None else 1.0
        workers = max(sum(int(node.gpus // gpus_each) for node in fitting), 1) if gpus else 1
    cpus = float(request.cpus) if request.cpus is not None else 1.0
    if request.cpus is None and not gpus:
        total = sum(node.cpus for node in fitting) * request.share
        cpus = max(min(total // workers, max(node.cpus for node in fitting) * request.share // 1), 1.0)
    single = WorkerGroup(1, gpus, cpus, {}, {})
    places = sum(_capacity(node, single, workers) for node in fitting)
    if places < workers:
        raise ConfigError(
            f"{flag}={workers} with {gpus:g} GPUs and {cpus:g} CPUs per worker exceeds the cluster, which has room for "
            f"{places}; lower {flag} or the GPUs and CPUs per worker, or add nodes"
        )
    return WorkerGroup(workers, gpus, cpus, dict(resources), dict(selector))


def _capacity(node: Node, group: WorkerGroup, limit: int) -> int:
    """Return the number of workers of the group that fit on a node, up to `limit`."""
    free = _Free(node)
    return sum(free.take(group) for _ in range(limit))


def _labels_hint(nodes: Sequence[Node]) -> str:
    """Return the part of an error message that lists the nodes' labels, without those that Ray sets itself."""
    known = sorted({f"{key}={value}" for node in nodes for key, value in node.labels.items() if "ray.io/" not in key})
    return f"choose from the nodes' labels: {', '.join(known)}" if known else "the nodes have none; remove the selector"
