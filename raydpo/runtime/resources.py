"""How many workers each stage gets, and what each of them takes from the cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydpo.config import JobConfig
from raydpo.errors import ConfigError


@dataclass(frozen=True)
class Node:
    """A node of the cluster."""

    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom ones."""


@dataclass(frozen=True)
class WorkerGroup:
    """Workers of one kind."""

    workers: int
    gpus: float
    """GPUs of each worker; 0 runs on CPU."""
    cpus: float
    """CPUs of each worker, which are also the threads that torch uses."""
    resources: Mapping[str, float]
    label_selector: Mapping[str, str]


def nodes_of(described: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The nodes that are alive, from what `ray.nodes()` says."""
    alive = ((node["Resources"], node.get("Labels", {})) for node in described if node["Alive"])
    return [Node(has.get("CPU", 0), has.get("GPU", 0), labels, has) for has, labels in alive]


ROUNDING = 1e-6
"""Of sums of parts of a GPU."""
TRAIN_SHARE = 0.6
"""Of each GPU, and of the CPUs, where scorers are to work beside the train workers and the user does not say how: more
than half, so that Ray never puts two train workers on one GPU."""


def train_group(job: JobConfig, nodes: Sequence[Node]) -> WorkerGroup:
    """The train workers; `ConfigError` where the cluster cannot hold them."""
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
    """The scoring actors; `ConfigError` where the cluster cannot hold them.

    They may take every GPU that fits: the pool gives them back before training starts, where both have no room.
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
    """True where there is room for the workers of all groups at the same time, each put where it first fits."""
    free = [_Free(node) for node in nodes]
    return all(any(left.take(group) for left in free) for group in groups for _ in range(group.workers))


class _Free:
    """What of a node is not taken."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._left = {**node.resources, "CPU": node.cpus}
        self._gpus = [1.0] * int(node.gpus)
        """What is left of each: Ray gives a worker whole ones, or a part of a single one."""

    def take(self, group: WorkerGroup) -> bool:
        """Give a worker of the group what it needs; False where there is not enough."""
        request = {**group.resources, "CPU": group.cpus}
        part, count = (group.gpus, 1) if 0 < group.gpus < 1 else (1.0, int(group.gpus))
        gpus = [index for index, left in enumerate(self._gpus) if left >= part - ROUNDING][:count]
        fits = all(self._left.get(name, 0) >= amount for name, amount in request.items()) and len(gpus) == count
        if not fits or not group.label_selector.items() <= self._node.labels.items():
            return False
        self._left.update({name: self._left.get(name, 0) - amount for name, amount in request.items()})
        for index in gpus:
            self._gpus[index] -= part
        return True


@dataclass(frozen=True)
class ResourceRequest:
    """What the user asked for; None where the cluster decides."""

    workers: int | None
    gpus: float | None
    cpus: int | None
    share: float
    """Of the CPUs, where the cluster decides, and of each GPU, if it is `divided`."""
    divided: bool


def _divides(job: JobConfig) -> bool:
    """True where a scorer shares a GPU with a train worker; not if the user says what either takes, or where it is."""
    cluster, reference = job.cluster, job.reference
    unsaid = cluster.gpus_per_worker is None and reference.reference_gpus_per_worker is None
    return reference.sync_ref_model and unsaid and cluster.worker_label_selector == reference.reference_label_selector


def _group(
    flag: str,
    request: ResourceRequest,
    resources: Mapping[str, float],
    selector: Mapping[str, str],
    nodes: Sequence[Node],
) -> WorkerGroup:
    fitting = [node for node in nodes if selector.items() <= node.labels.items()]
    if not fitting:
        raise ConfigError(f"no node has the labels {dict(selector)}; {_labels(nodes)}")
    all_gpus = any(node.gpus for node in fitting)
    gpus = request.gpus if request.gpus is not None else all_gpus * (request.share if request.divided else 1.0)
    workers = request.workers
    if workers is None:
        each = gpus if request.gpus is not None else 1.0
        workers = max(sum(int(node.gpus // each) for node in fitting), 1) if gpus else 1
    cpus = float(request.cpus) if request.cpus is not None else 1.0
    if request.cpus is None and not gpus:
        total = sum(node.cpus for node in fitting) * request.share
        cpus = max(min(total // workers, max(node.cpus for node in fitting) * request.share // 1), 1.0)
    one = WorkerGroup(1, gpus, cpus, {}, {})
    places = sum(_places(node, one, workers) for node in fitting)
    if places < workers:
        raise ConfigError(
            f"{flag}={workers} with {gpus:g} GPUs and {cpus:g} CPUs each do not fit: there is room for {places}; "
            f"lower {flag} or what each takes, or add nodes"
        )
    return WorkerGroup(workers, gpus, cpus, dict(resources), dict(selector))


def _places(node: Node, group: WorkerGroup, most: int) -> int:
    """How many workers of the group a node has room for, up to `most`."""
    free = _Free(node)
    return sum(free.take(group) for _ in range(most))


def _labels(nodes: Sequence[Node]) -> str:
    known = sorted({f"{key}={value}" for node in nodes for key, value in node.labels.items() if "ray.io/" not in key})
    return f"the nodes' labels are {', '.join(known)}" if known else "no node has labels; leave the selector out"
