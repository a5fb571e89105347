"""Every cell of a benchmark, one after another: measured, out of memory, or not tried since it would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..reporting.backends import model_backends
from ..reporting.tensors import parameter_bytes
from .appetite import Appetite
from .cells import BASELINE, Case, Cell, Cells, Status, Times
from .measure import Run, check_model, prompts, run_once
from .memory import available_bytes, free, is_out_of_memory, peak_of

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How often: `warmup` runs that do not count, then `repeats` that do.

    Raises:
        ConfigError: a number that cannot be.
    """

    repeats: int = 5
    warmup: int = 1

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 0:
            raise ConfigError(
                f"repeats={self.repeats}, warmup={self.warmup}: give at least one repeat, and no negative number."
            )


def cases_of(batches: Sequence[int], inputs: Sequence[int], output: int, positions: int | None) -> list[Case]:
    """All batches of all lengths, the small ones first.

    Args:
        positions: how many tokens the model can place; None if any number.

    Raises:
        ConfigError: a number that cannot be, or more tokens than the model has positions for.
    """
    for name, values in (("batch", batches), ("input", inputs)):
        if not values or any(value < 1 for value in values):
            raise ConfigError(f"{name}={','.join(map(str, values))!r}: give one or more positive numbers.")
    if output < 2:
        raise ConfigError(f"output={output}: give at least 2 tokens; the first belongs to the prefill.")
    if positions is not None and max(inputs) + output > positions:
        raise ConfigError(
            f"{max(inputs)} tokens of input and {output} of output exceed the {positions} positions of this model. "
            f"Give at most --input {max(positions - output, 0)}, or fewer tokens of output."
        )
    cells = {(batch, length): None for length in sorted(inputs) for batch in sorted(batches)}
    return [Case(batch, length, output) for batch, length in cells]


class Bench:
    """A benchmark of several schemes on one model.

    Args:
        load: gives the model under a scheme.
        weights: {scheme: bytes that its weights will take}.
        cells: where results go, and what is there already.
        settings: how often.
        device: where the models will be.
        tell: is told of each cell when it is done.
    """

    def __init__(
        self,
        load: Callable[[str], PreTrainedModel],
        weights: Mapping[str, int],
        cells: Cells,
        settings: Settings,
        device: torch.device,
        tell: Callable[[Cell], None] = lambda cell: None,
    ) -> None:
        self.load, self.weights, self.cells, self.settings = load, weights, cells, settings
        self.device, self.tell = device, tell
        self._baseline: PreTrainedModel | None = None
        self._appetites: dict[str, Appetite] = {}
        self._longest = 0

    def run(self, schemes: Sequence[str], cases: Sequence[Case]) -> list[Cell]:
        """Measure what is not there yet; all cells, the float model first.

        Where both fit in memory, each run of a scheme stands right before or after one of the float model, so that
        what else the machine does meets both.
        """
        ordered = sorted(dict.fromkeys(schemes), key=lambda scheme: scheme != BASELINE)
        self._longest = max(case.tokens for case in cases)
        for scheme in ordered:
            wanted = [case for case in cases if not self.cells.is_finished(scheme, case)]
            if wanted:
                self._scheme(scheme, wanted, in_pairs=BASELINE in ordered and scheme != BASELINE)
        self._drop_baseline()
        found = (self.cells.find(scheme, case) for scheme in ordered for case in cases)
        return [cell for cell in found if cell is not None]

    def _scheme(self, scheme: str, cases: Sequence[Case], in_pairs: bool) -> None:
        if in_pairs:
            self._baseline_beside(scheme)
        else:
            self._drop_baseline()
        weights = self.weights[scheme]
        if self._would_end_programs(weights):
            self._add_all(scheme, cases, "oom_predicted", f"the weights alone take {weights:,} bytes")
            return
        model = self._ready(scheme)
        if model is None and self._baseline is not None:
            self._drop_baseline()
            model = self._ready(scheme)
        if model is None:
            self._add_all(scheme, cases, "oom", f"memory ran out for the weights of {weights:,} bytes and a short run")
            return
        for case in cases:
            self._add(self._cell(scheme, model, case))
        if scheme == BASELINE:
            self._baseline = model

    def _ready(self, scheme: str) -> PreTrainedModel | None:
        """The model, found to be right, with its appetite known; None if memory was too small even for that."""

        def prepare() -> PreTrainedModel:
            model = self.load(scheme)
            model.eval()
            check_model(model, scheme)
            if self.device.type != "cuda" and scheme not in self._appetites:
                self._appetites[scheme] = Appetite.of(model, self._longest)
            return model

        return _unless_memory_runs_out(prepare)

    def _baseline_beside(self, scheme: str) -> None:
        """Have the float model loaded if there is memory for it beside the scheme, and not if there is not."""
        both = self.weights[scheme] + (0 if self._baseline is not None else self.weights[BASELINE])
        if self._is_too_much(both):
            self._drop_baseline()
        elif self._baseline is None:
            self._baseline = self._ready(BASELINE)

    def _cell(self, scheme: str, model: PreTrainedModel, case: Case) -> Cell:
        """Measured beside the float model if it is there and had memory enough for this, else alone."""
        if self._baseline is not None and self._would_end_programs(self._need(BASELINE, case)):
            self._drop_baseline()
        need = self._need(scheme, case)
        if self._would_end_programs(need):
            self._drop_baseline()
        if self._would_end_programs(need):
            return Cell(scheme, case, "oom_predicted", f"a run would take about {need:,} bytes beside the weights")
        alone = self.cells.find(BASELINE, case)
        baseline = self._baseline if alone is None or alone.status == "ok" else None
        found = _unless_memory_runs_out(lambda: self._measure(scheme, model, baseline, case))
        if found is None and self._baseline is not None:
            baseline = None
            self._drop_baseline()
            found = _unless_memory_runs_out(lambda: self._measure(scheme, model, None, case))
        return found or Cell(scheme, case, "oom", "memory ran out during a run")

    def _measure(self, scheme: str, model: PreTrainedModel, baseline: PreTrainedModel | None, case: Case) -> Cell:
        ids = prompts(model, case)
        _, peak = peak_of(self.device, lambda: run_once(model, ids, case))
        for each in (model, *([baseline] if baseline is not None else [])):
            for _ in range(self.settings.warmup):
                run_once(each, ids.to(each.device), case)
        runs, others = self._repeat(model, baseline, ids, case)
        weights = parameter_bytes(model)
        return Cell(
            scheme,
            case,
            "ok",
            times=_times(runs),
            baseline=_times(others) if others else None,
            peak_bytes=weights + peak,
            weight_bytes=weights,
            kv_bytes=runs[-1].kv_bytes,
            implementations=tuple(dict.fromkeys(each.implementation for each in model_backends(model))),
        )

    def _repeat(
        self, model: PreTrainedModel, baseline: PreTrainedModel | None, ids: Tensor, case: Case
    ) -> tuple[list[Run], list[Run]]:
        """Runs of the scheme and of the float model in turns; who goes first alternates."""
        runs: list[Run] = []
        others: list[Run] = []
        for number in range(self.settings.repeats):
            turn = [(model, runs)] if baseline is None else [(baseline, others), (model, runs)]
            for each, results in turn if number % 2 == 0 else reversed(turn):
                results.append(run_once(each, ids.to(each.device), case))
        return runs, others

    def _need(self, scheme: str, case: Case) -> int:
        """Bytes that a run takes beside the weights; 0 where nobody asks."""
        return self._appetites[scheme].bytes(case) if scheme in self._appetites else 0

    def _would_end_programs(self, wanted: int) -> bool:
        """Whether it is better not tried: a full GPU raises an error, a full computer ends programs, ours or others."""
        return self.device.type != "cuda" and self._is_too_much(wanted)

    def _is_too_much(self, wanted: int) -> bool:
        available = available_bytes(self.device)
        return available is not None and wanted > available

    def _drop_baseline(self) -> None:
        self._baseline = None
        free()

    def _add_all(self, scheme: str, cases: Sequence[Case], status: Status, reason: str) -> None:
        for case in cases:
            self._add(Cell(scheme, case, status, reason))

    def _add(self, cell: Cell) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        done = Cell(**{**vars(cell), "made": self.cells.made, "date": now})
        self.cells.add(done)
        self.tell(done)


def _unless_memory_runs_out(call: Callable[[], T]) -> T | None:
    """What `call` gives, or None if memory was too small for it; any other error leaves."""
    try:
        return call()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free()  # only here: the error holds what the call had
    return None


def _times(runs: Sequence[Run]) -> Times:
    return Times(*(tuple(getattr(run, name) for run in runs) for name in ("prefill", "decode", "total")))
