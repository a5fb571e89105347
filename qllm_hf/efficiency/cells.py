"""What was measured of one scheme, batch and length, and the file that keeps it.

DIR/bench.jsonl   one line per cell; a cell that is there is not measured again on the same machine
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from ..errors import CheckpointError
from ..evaluation.lines import CELLS, append_line, read_lines
from ..shown import short, short_text
from ..typed import made_of

BASELINE: Final = "FP16"
FORMAT: Final = 1
"""Number of the line's form. A reader refuses a newer one."""

Status = Literal["ok", "oom", "oom_predicted"]
"""Measured; memory was too small; memory would be too small, so it was not tried."""


@dataclass(frozen=True)
class Case:
    """What is run: `batch` prompts of `input` tokens, and `output` new ones for each."""

    batch: int
    input: int
    output: int

    @property
    def tokens(self) -> int:
        """Tokens of a sequence in the cache at the end; the last one is written and not read."""
        return self.input + self.output - 1


@dataclass(frozen=True)
class Times:
    """Seconds, one number for each repeat.

    Attributes:
        prefill: until the first new token.
        decode: for each new token after it, on average.
        total: of all of `generate`.
    """

    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    total: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """One scheme, batch and length.

    Attributes:
        scheme: such as "W4KV8".
        case: what was run.
        status: whether it was measured.
        reason: why not; empty if it was.
        times: of the scheme.
        baseline: of the float model, each repeat right before or after that of the scheme; None where both did not fit
            in memory, and for the float model itself.
        peak_bytes: weights, and the most that other tensors took beside them during one run.
        weight_bytes: of all parameters.
        kv_bytes: of the KV cache at the end; None where it is not known.
        implementations: that ran the packed layers.
        made: model, machine, versions and settings: a cell is measured again where one of them differs.
        date: when it was finished, UTC, ISO 8601.
    """

    scheme: str
    case: Case
    status: Status
    reason: str = ""
    times: Times | None = None
    baseline: Times | None = None
    peak_bytes: int | None = None
    weight_bytes: int | None = None
    kv_bytes: int | None = None
    implementations: tuple[str, ...] = ()
    made: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """The cell as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Cell:
        """The cell that `to_json` wrote.

        Raises:
            CheckpointError: it was written by a newer version, or is no cell.
        """
        if not isinstance(entry.get("format"), int) or not {"scheme", "case", "status"} <= entry.keys():
            raise CheckpointError(
                f"this is no cell of a benchmark: it has {short_text(', '.join(map(repr, entry))) or 'nothing'}."
            )
        if entry["format"] > FORMAT:
            raise CheckpointError(
                f"a cell of format {short(entry['format'])} was written by a newer qllm_hf; this one reads "
                f"up to {FORMAT}. Update it: pip install --upgrade qllm-hf."
            )
        values = {each.name: entry[each.name] for each in fields(cls) if each.name in entry}
        try:
            values["case"] = made_of(Case, _table(values["case"]))
            if isinstance(listed := values.get("implementations"), list):
                values["implementations"] = tuple(listed)
            for name in ("times", "baseline"):
                if values.get(name) is not None:
                    seconds = {key: tuple(_list(value)) for key, value in _table(values[name]).items()}
                    values[name] = made_of(Times, seconds)
            cell = made_of(cls, values)
            _check(cell)
        except ValueError as error:
            raise CheckpointError(f"a cell of a benchmark is damaged: {error}. Delete it, and measure again.") from None
        return cell


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{short(value)} is no table")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{short(value)} is no list")
    return value


def _check(cell: Cell) -> None:
    """Raises ValueError if no measurement could have made this cell."""
    if (cell.status == "ok") != (cell.times is not None):
        raise ValueError(f"status={cell.status} and times={short(cell.times)}")
    for times in (cell.times, cell.baseline):
        for seconds in () if times is None else (times.prefill, times.decode, times.total):
            if not seconds or not all(0 < each < 1e9 for each in seconds):
                raise ValueError(f"it has the times {short(seconds)}")
    sizes = (*asdict(cell.case).values(), cell.peak_bytes, cell.weight_bytes, cell.kv_bytes)
    if not all(size is None or 0 <= size < 2**60 for size in sizes):
        raise ValueError(f"it has the sizes {short(sizes)}")


class Cells:
    """The cells of a folder, or of this run only.

    Args:
        folder: where they are kept; None keeps none.
        made: of the cells that are looked for and added.

    Raises:
        CheckpointError: the folder is a file, or its cells cannot be read.
    """

    def __init__(self, folder: Path | None, made: Mapping[str, Any]) -> None:
        if folder is not None and folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{str(folder)!r} is a file. Give a folder for the results.")
        self.folder, self.made = folder, dict(made)
        lines = [] if folder is None else read_lines(folder / CELLS)
        try:
            found = [cell for cell in map(Cell.from_json, lines) if cell.made == self.made]
        except CheckpointError as error:
            raise CheckpointError(f"{folder and folder / CELLS}: {error}") from None
        self._cells = {(cell.scheme, cell.case): cell for cell in found}
        self.kept = sum(self.is_finished(*key) for key in self._cells)

    def find(self, scheme: str, case: Case) -> Cell | None:
        """The last cell of a scheme and case."""
        return self._cells.get((scheme, case))

    def is_finished(self, scheme: str, case: Case) -> bool:
        """Whether there is nothing to measure. What was only predicted is tried again: there may be more memory now."""
        cell = self.find(scheme, case)
        return cell is not None and cell.status != "oom_predicted"

    def add(self, cell: Cell) -> None:
        """Keep a cell."""
        self._cells[cell.scheme, cell.case] = cell
        if self.folder is not None:
            append_line(self.folder / CELLS, cell.to_json())
