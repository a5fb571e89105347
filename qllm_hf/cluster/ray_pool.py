"""The machines of a Ray cluster. Ray places jobs by memory, cores and GPUs; what happens to them comes back as events.

Each job is a task that yields: its scores reach this process one by one, so that a machine that dies takes with it only
what it was at. Ray itself repeats nothing (max_retries=0): the sweep does, and knows how often and where.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..errors import ConfigError, MissingExtraError
from ..reporting.text import bytes_text
from .footprint import Footprint
from .pool import Ended, Event, Lost, Started
from .worker import Asked, Failed, Made, Order, Scored, Seen, Subject, look, measure

LOCAL: Final = "local"
WAIT: Final = 1.0
"""Seconds until a sweep looks around again, if nothing happens."""
PATIENCE: Final = 900.0
"""Seconds for a machine to show that it has the model and the rows; it may have to download both."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, and what all jobs on it may take together."""

    id: str
    name: str
    cpus: float
    gpus: float
    memory: float

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.name}: {self.cpus:g} CPUs{gpus}, {bytes_text(self.memory)}"


class RayPool:
    """A Ray cluster.

    Args:
        address: "auto" for the cluster that this machine belongs to, HOST:PORT of its head, or "local" to start one on
            this machine alone that ends with the sweep.
        cpus: of a job; by default all of the smallest machine's, as a sweep on one machine uses them all, or its share
            where machines have several GPUs.
        gpus: of a job; by default 1 where there are some.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: there is no cluster at this address, or one that no job can run on.
    """

    def __init__(self, address: str = "auto", *, cpus: int | None = None, gpus: float | None = None) -> None:
        ray = _ray()
        self._ray = ray
        self._running: dict[Any, bool] = {}
        if address.startswith("ray://"):
            raise ConfigError(
                f"--ray {address!r}: Ray's client cannot hand out scores one by one. Run this on a machine of the "
                "cluster with --ray auto, or send it there: ray job submit -- qllm-hf sweep ... --ray auto"
            )
        self._own = not ray.is_initialized()
        if self._own:
            options = {"include_dashboard": False} if address == LOCAL else {}
            try:
                ray.init(address=address, log_to_driver=False, logging_level="error", **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"--ray {address!r}: there is no Ray cluster that can be reached "
                    f"({str(error).strip().splitlines()[0]}). Start one (ray start --head, and on the other machines "
                    "ray start --address HEAD:6379), or give --ray local."
                ) from error
        nodes = [node for node in self.nodes() if node.cpus >= 1]
        if not nodes:
            raise ConfigError("no machine of the Ray cluster has a CPU to give. See `ray status`.")
        self.gpus = (1.0 if any(node.gpus for node in nodes) else 0.0) if gpus is None else gpus
        if cpus is None:
            able = [node for node in nodes if node.gpus >= self.gpus] or nodes
            cpus = int(min(node.cpus / max(1, node.gpus // self.gpus if self.gpus else 1) for node in able))
        self.cpus = max(1, cpus)

    def nodes(self) -> list[Node]:
        """The machines that are there now. Two of the same name are told apart by the beginning of their ids."""
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        names = [str(node["NodeName"]) for node in alive]
        found = []
        for node, name in zip(alive, names, strict=True):
            has = node["Resources"]
            told = name if names.count(name) == 1 else f"{name}/{node['NodeID'][:6]}"
            found.append(Node(node["NodeID"], told, *(float(has.get(key, 0)) for key in ("CPU", "GPU", "memory"))))
        return found

    @property
    def slots(self) -> int:
        """How many jobs can run at once, memory aside."""
        return sum(self._room(node) for node in self.nodes())

    def refusal(self, need: Footprint) -> str:
        """Why no machine can ever take a job with this need; "" if one can."""
        nodes, memory = self.nodes(), self._memory(need)
        if any(self._room(node) and node.memory >= memory for node in nodes):
            return ""
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return (
            f"it takes {self.cpus} CPUs{gpus} and {bytes_text(memory)} of memory, and no machine of the Ray cluster "
            f"has that ({'; '.join(map(str, nodes))})"
        )

    def look(self, subject: Subject, asked: Asked, tasks: tuple[str, ...], need: Footprint) -> dict[str, Seen | Failed]:
        """{machine: what it has}, of all machines that could take a job with this need."""
        from ray.exceptions import GetTimeoutError, RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asks: Any = self._ray.remote(look)
        memory = self._memory(need)
        sent = {
            node.name: asks.options(
                name=f"qllm look at {node.name}",
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            ).remote(subject, asked, tasks)
            for node in self.nodes()
            if self._room(node) and node.memory >= memory
        }
        found: dict[str, Seen | Failed] = {}
        for name, promise in sent.items():
            try:
                found[name] = self._ray.get(promise, timeout=PATIENCE)
            except GetTimeoutError:
                found[name] = Failed(f"no answer in {PATIENCE:.0f} seconds", again=False)
            except (RayError, ImportError) as error:
                found[name] = Failed(_reason(error), again=False)
        return found

    def submit(self, name: str, order: Order, need: Footprint) -> Any:
        """Begin a job; gives what its events are told by."""
        job = self._ray.remote(_job).options(
            name=f"qllm {name}",
            num_returns="streaming",
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            memory=self._memory(need),
            max_retries=0,
        )
        running = job.remote(order)
        self._running[running] = True
        return running

    def events(self) -> Iterator[tuple[Any, Event]]:
        """What has happened since the last call, or after a short wait nothing."""
        from ray.exceptions import OutOfMemoryError, RayError

        if not self._running:
            return
        running = list(self._running)
        ready, _ = self._ray.wait(running, num_returns=1, timeout=WAIT)
        more, _ = self._ray.wait(running, num_returns=len(running), timeout=0)
        for each in dict.fromkeys([*ready, *more]):
            try:
                event = self._ray.get(next(each))
            except StopIteration:
                event = Ended()
            except (RayError, ImportError) as error:
                event = Lost(_reason(error), no_memory=isinstance(error, OutOfMemoryError))
            if isinstance(event, Ended | Lost):
                del self._running[each]
            elif isinstance(event, str):
                event = Started(next((node.name for node in self.nodes() if node.id == event), event[:6]))
            yield each, event

    def cancel(self) -> None:
        """End what is running, and the cluster if it was started for this sweep."""
        from ray.exceptions import RayError

        for each in self._running:
            with contextlib.suppress(RayError, ValueError):
                self._ray.cancel(each, force=True)
        self._running.clear()
        if self._own:
            self._ray.shutdown()

    def _room(self, node: Node) -> int:
        """How many jobs a machine has cores and GPUs for."""
        by_cpu = int(node.cpus // self.cpus)
        return min(by_cpu, int(node.gpus // self.gpus)) if self.gpus else by_cpu

    def _memory(self, need: Footprint) -> int:
        return need.beside_device if self.gpus else need.total


def _job(order: Order) -> Iterator[str | Made | Scored | Failed]:
    """What a worker process of Ray runs: first on which machine it is, then what comes of the job."""
    import ray

    yield str(ray.get_runtime_context().get_node_id())
    yield from measure(order)


def _ray() -> Any:
    """Ray, with its reports to its makers switched off for all that is started here."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "a sweep on a cluster needs Ray, which is not installed: pip install 'qllm-hf[ray]'. All machines of the "
            "cluster need the same version of it, and of qllm-hf."
        ) from error
    return ray


def _reason(error: Exception) -> str:
    """What Ray says of an error, in one line."""
    if isinstance(error, ImportError) or "No module named 'qllm_hf'" in str(error):
        return "qllm-hf is not installed there: pip install 'qllm-hf[eval,ray]'"
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = said[0].split(". ")[0].rstrip(".") if said else ""  # what follows are ids, and hints at Ray's own tools
    return f"{type(error).__name__}: {first}"
