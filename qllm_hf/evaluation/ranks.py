"""Several processes that share the questions of a run: each answers every n-th batch, and all know all answers.

`torchrun --nproc_per_node N -m qllm_hf evaluate ...` starts them, on one machine or on several; accelerate finds out
where they run. Answers travel as JSON in tensors over gloo, on any device: they are small, and nothing is unpickled.
No folder is shared, and no path has to be the same: each machine reads its own files, and only the first process of
all writes records.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, NoReturn

import torch

from ..errors import QllmError
from .presence import Presence, connect
from .sources import first_line

PATIENCE: Final = timedelta(hours=6)
"""How long a process waits for the slowest one. One that died is noticed at once: its connections close."""
_LOOK: Final = 1.0
"""Seconds between two looks at who is still there."""
_KEPT: Final = "What was answered is kept: the same command goes on from there."


class LostProcess(QllmError):
    """Another process of the run is gone."""


class FailedElsewhere(QllmError):
    """Another process of the run could not go on, and said why."""


class Disagreement(QllmError):
    """The processes of a run do not have the same: their answers would not be those of one."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: this one's number.
        size: how many there are.
        group: through which they talk.
        local: this one's number among those of its machine.
        names: of all processes, as a person finds them: host and machine.
        presence: who is still there.
        one_model: they hold parts of one model, so that all of them answer every question.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    local: int = 0
    names: tuple[str, ...] = ()
    presence: Presence | None = None
    one_model: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process draws progress bars and writes records."""
        return self.rank == 0

    def turns(self, batches: int) -> range:
        """The numbers of the batches that this process answers."""
        return range(batches) if self.one_model else range(self.rank, batches, self.size)

    def common(self, numbers: set[int]) -> set[int]:
        """The numbers that count as done: with one model, those that are so in every process."""
        if not self.one_model:
            return numbers
        everyone = self.share({self.rank: sorted(numbers)}).values()
        return set.intersection(*(set(done) for done in everyone))

    def share(self, mine: dict[int, Any]) -> dict[int, Any]:
        """The entries of all processes.

        Raises:
            LostProcess: one of them is gone.
            FailedElsewhere: one of them could not go on.
        """
        if self.size == 1:
            return mine
        merged: dict[int, Any] = {}
        for part in self._exchange({"entries": mine}):
            merged.update({int(key): value for key, value in part["entries"].items()})
        return merged

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            LostProcess, FailedElsewhere: as `share`.
        """
        self.share({})

    def of_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in all of them: a value that JSON can hold. The others may lack its files."""
        return self.share({0: make()} if self.is_first else {})[0]

    def agree(self, mine: Mapping[str, Any]) -> None:
        """Go on only if all processes say the same of what they have.

        Args:
            mine: {what it is: a value that JSON can hold}.

        Raises:
            Disagreement: they do not; it names processes and values, and is raised in all of them.
            LostProcess, FailedElsewhere: as `share`.
        """
        if self.size == 1:
            return
        every = self.share({self.rank: json.loads(json.dumps(mine, default=str))})
        ours = every[0]
        said = [
            f"{what} is {_short(theirs.get(what))} in {self.name(rank)}, and {_short(ours.get(what))} in {self.name(0)}"
            for rank, theirs in sorted(every.items())
            for what in dict.fromkeys([*ours, *theirs])
            if theirs.get(what) != ours.get(what)
        ]
        if said:
            raise Disagreement(
                f"the processes of this run do not have the same: {'; '.join(said)}. Give all machines the same "
                "libraries, files and options."
            )

    def differing(self, mine: Any) -> dict[str, Any]:
        """{process: its value}, if they are not all the same; else nothing."""
        every = self.share({self.rank: mine})
        return (
            {}
            if len({json.dumps(value) for value in every.values()}) < 2
            else {self.name(rank): value for rank, value in sorted(every.items())}
        )

    def tell(self, error: Exception) -> None:
        """Say to the others, where they next wait for this process, that it cannot go on with what they are at.

        Each of them gets a FailedElsewhere there, and all can go on with something else together.

        Raises:
            LostProcess: one of them is gone.
        """
        if self.size > 1:
            with contextlib.suppress(FailedElsewhere):
                self._exchange({"failed": first_line(error)})

    @contextlib.contextmanager
    def together(self) -> Iterator[Ranks]:
        """These processes until the work is done; what ends one of them is told to the others, who end too."""
        try:
            yield self
        except (LostProcess, FailedElsewhere, Disagreement):
            raise
        except Exception as error:
            if self.presence is not None:
                with contextlib.suppress(RuntimeError):
                    self.presence.note("failed", first_line(error))
            raise
        self.leave()

    @contextlib.contextmanager
    def local_first(self) -> Iterator[None]:
        """One process of each machine goes first, the others follow: what it downloads, they find."""
        if self.local:
            self.wait()
        yield
        if not self.local:
            self.wait()

    def leave(self) -> None:
        """Disconnect, so that the program ends without a complaint."""
        if self.presence is not None:
            self.presence.leave()
        if self.size > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()

    def name(self, rank: int) -> str:
        """A process as a person finds it."""
        return f"process {rank}" + (f" on {self.names[rank]}" if self.names else "")

    def _exchange(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        """What every process says now.

        Raises:
            LostProcess, FailedElsewhere: as `share`.
        """
        data = json.dumps(mine).encode()
        try:
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            self._gather(lengths, torch.tensor([len(data)]))
            longest = int(max(lengths))
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            self._gather(parts, padded)
        except RuntimeError as error:
            self._lost(error)
        said = [json.loads(bytes(part[: int(length)].tolist())) for part, length in zip(parts, lengths, strict=True)]
        if failed := [f"{self.name(rank)}: {part['failed']}" for rank, part in enumerate(said) if "failed" in part]:
            raise FailedElsewhere("; ".join(failed))
        return said

    def _gather(self, into: list[torch.Tensor], mine: torch.Tensor) -> None:
        """all_gather; while others are waited for, this process looks whether they are there.

        Raises:
            RuntimeError: a connection closed, or somebody has been silent for too long.
        """
        import torch.distributed as dist

        work: Any = dist.all_gather(into, mine, group=self.group, async_op=True)
        looked, pause = time.monotonic(), 0.0005
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
            if self.presence is not None and time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                if silent := self.presence.silent():
                    raise LostProcess(f"{', '.join(map(self.name, silent))} has not been heard of for long. {_KEPT}")
        work.wait()

    def _lost(self, error: RuntimeError) -> NoReturn:
        """Raises what is known of why a connection closed."""
        if self.presence is None:
            raise LostProcess(
                f"process {self.rank} of {self.size} lost another one: {first_line(error)} {_KEPT}"
            ) from error
        try:
            lost, failed = self.presence.roll_call(), self.presence.notes("failed")
        except RuntimeError:  # the store is on the machine of the first process
            raise LostProcess(
                f"the machine of {self.name(0)} does not answer, on which the processes met. {_KEPT}"
            ) from error
        if failed:
            raise FailedElsewhere(
                "; ".join(f"{self.name(rank)} ended: {why}" for rank, why in failed.items())
            ) from error
        who = " and ".join(map(self.name, lost)) or "another process"
        raise LostProcess(f"{who} is gone, {self.name(self.rank)} found. {_KEPT}") from error


def this_process(*, one_model: bool = False) -> Ranks:
    """The processes that torchrun started, connected; or this one alone.

    Raises:
        LostProcess: not all of them came.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1:
        return Ranks()
    import torch.distributed as dist
    from accelerate import PartialState

    # without `cpu`, accelerate takes each process on a machine without accelerators for the only one
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.num_processes != started:
        raise LostProcess(f"{started} processes were started, and accelerate connected {state.num_processes} of them.")
    rank, local = state.process_index, state.local_process_index
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    presence = connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), rank, started)
    here = f"{socket.gethostname()}, machine {os.environ.get('GROUP_RANK', '?')}"
    every = Ranks(rank, started, group, local, (), presence).share({rank: here})
    names = tuple(every[each] for each in range(started))
    return Ranks(rank, started, group, local, names, presence, one_model)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:80]}..." if len(text) > 80 else text or "nothing"
