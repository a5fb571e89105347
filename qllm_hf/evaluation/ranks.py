"""Several processes that share the questions of a run: each answers every n-th batch, and all know all answers.

`torchrun --nproc_per_node N -m qllm_hf evaluate ...` starts them; accelerate finds out where they run. Answers travel
as JSON in tensors over gloo, on any device: they are small, and nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch

from ..errors import QllmError

PATIENCE: Final = timedelta(hours=6)
"""How long a process waits for the slowest one. One that died is noticed at once: its connections close."""


class LostProcess(QllmError):
    """Another process of the run is gone."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: this one's number, and how many there are.

    With `one_model` they hold parts of one model, so that all of them answer every question.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
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
        """
        if self.size == 1:
            return mine
        text = json.dumps(mine).encode()
        merged: dict[int, Any] = {}
        for part in self._gather(torch.frombuffer(bytearray(text), dtype=torch.uint8)):
            merged.update({int(key): value for key, value in json.loads(bytes(part.tolist())).items()})
        return merged

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            LostProcess: one of them is gone.
        """
        self.share({})

    def _gather(self, mine: torch.Tensor) -> list[torch.Tensor]:
        import torch.distributed as dist

        try:
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(mine)]), group=self.group)
            longest = int(max(lengths))
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(mine)] = mine
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(parts, padded, group=self.group)
        except RuntimeError as error:
            raise LostProcess(
                f"process {self.rank} of {self.size} lost another one: {str(error).strip().splitlines()[0]} "
                "What was answered is kept: the same command goes on from there."
            ) from error
        return [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]


def this_process(*, one_model: bool = False) -> Ranks:
    """The processes that torchrun started, connected; or this one alone."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1:
        return Ranks()
    import torch.distributed as dist
    from accelerate import PartialState

    # without `cpu`, accelerate takes each process on a machine without accelerators for the only one
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.num_processes != started:
        raise LostProcess(f"{started} processes were started, and accelerate connected {state.num_processes} of them.")
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(state.process_index, state.num_processes, group, one_model)


def leave(ranks: Ranks) -> None:
    """Disconnect, so that the program ends without a complaint."""
    if ranks.size > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
