"""What each reader makes of one checkpoint, by the table of readers; what nobody reads is refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import ConfigError, ModelError, did_you_mean
from ..families import SAME_INPUT
from .groups import INT_QUANTIZED, Group
from .readers import OWN_WEIGHTS, OWN_WEIGHTS_ROW, READERS, TABLE, WANTED, Known, Outcome
from .stored import StoredWeight

_WORST_LAST: tuple[Outcome, ...] = ("same", "own grid", "weights", "no")
_SUREST_FIRST: tuple[Known, ...] = ("ran", "read", "not run")


class Reading(NamedTuple):
    """What a reader makes of a whole checkpoint: its worst cell, and what to know of all of them.

    Attributes:
        known: how the least sure cell is known; of an outcome "no", how that is known.
        notes: one for each row that has any.
    """

    outcome: Outcome
    known: Known
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"outcome": self.outcome, "known": self.known, "notes": list(self.notes)}


def readings(
    weights: Sequence[StoredWeight], groups: Sequence[Group], kept: Collection[str] = (), model_type: str = ""
) -> dict[str, Reading]:
    """What each reader makes of a checkpoint with these weights, quantized like this.

    Args:
        kept: names of linear layers that stay in floating point.
    """
    own = [OWN_WEIGHTS_ROW] if model_type in OWN_WEIGHTS else []
    rows = list(dict.fromkeys([*_rows(weights, groups, kept), *own]))
    return {reader: _reading(reader, rows) for reader in READERS}


def check_readers(found: Mapping[str, Reading], wanted: str | None, groups: Sequence[Group]) -> None:
    """Raises ModelError if no reader, or none of those that are `wanted`, reads the checkpoint.

    Raises:
        ConfigError: there is no reader of that name.
    """
    if wanted is not None and wanted not in WANTED:
        raise ConfigError(f"--for {wanted!r}.{did_you_mean(wanted, WANTED)} Readers are {', '.join(WANTED)}.")
    asked = READERS if wanted is None else WANTED[wanted]
    if any(found[reader].outcome != "no" for reader in asked):
        return
    why = "; ".join(f"{reader}: {', '.join(found[reader].notes) or 'no'}" for reader in asked)
    who = "no reader takes this checkpoint" if wanted is None else f"{wanted} does not read this checkpoint"
    others = [reader for reader in READERS if found[reader].outcome != "no"]
    instead = f" It can be read by {', '.join(others)}: leave out --for." if others else ""
    raise ModelError(f"{who} ({why}).{instead} {_nearest(asked, groups)}")


def shortcoming(found: Mapping[str, Reading], groups: Sequence[Group]) -> str | None:
    """A sentence where some reader takes a checkpoint but none does what it says, or None."""
    if any(reading.outcome == "same" for reading in found.values()):
        return None
    best = min((reading.outcome for reading in found.values()), key=_WORST_LAST.index)
    what = "rounds the inputs of layers as it is done here" if best == "own grid" else "quantizes the inputs of layers"
    return f"no reader {what}. {_nearest(READERS, groups)}"


def _nearest(asked: Sequence[str] | Mapping[str, str], groups: Sequence[Group]) -> str:
    """The scheme to quantize to instead: as many of the bits as a reader takes."""
    group = max(groups, key=groups.count)
    size = group.group_size
    candidates = [
        Group(group.bits, False, size, group.a_bits, True),
        Group(group.bits, True, size, group.a_bits, True),
        Group(8, True, None, group.a_bits, True),
        Group(group.bits, False, size),
        Group(group.bits, True, size),
        Group(4, True, size),
    ]
    for candidate in candidates:
        for reader in asked:
            if TABLE[_row(candidate)][reader].outcome == "same":
                return f"Nearest that {reader} takes, for all layers: qllm-hf quantize {_options(candidate)}."
    return "Export --format float instead, which everything reads."


def _options(group: Group) -> str:
    scheme = f"W{group.bits}g{group.group_size or -1}" + (f"A{group.a_bits}" if group.a_bits else "")
    flags = [" --w-symmetric"] * group.symmetric + [" --a-symmetric"] * bool(group.a_bits and group.a_symmetric)
    return f"--scheme {scheme}{''.join(flags)}"


def _rows(weights: Sequence[StoredWeight], groups: Sequence[Group], kept: Collection[str]) -> Iterator[str]:
    dense, of_experts = set(), set()
    by_module: dict[str, Group | None] = dict.fromkeys(kept)
    for weight, group in zip(weights, groups, strict=True):
        by_module[weight.entry.module] = group
        if weight.entry.kind == "experts":
            of_experts.add(group)
            inputs = "with quantized inputs" if group.a_bits else None
            yield f"experts {inputs}" if inputs else f"experts, {_symmetry(group)} weights"
        else:
            dense.add(group)
        if weight.entry.kind == "conv1d":
            yield "Conv1D"
        yield _row(group)
        if group.a_bits and group.format != INT_QUANTIZED and group.bits != 4:
            yield _weights_row(group)  # its kernels have to take these weights as well
    if len(dense) > 1 or len(of_experts) > 1:
        yield "layers of different schemes"
    if _siblings_differ(by_module):
        yield "different schemes within q, k, v or gate, up"


def _row(group: Group) -> str:
    """The row of the table that a group of layers belongs to."""
    if group.format == INT_QUANTIZED and group.a_bits == 8:
        return "W8A8 symmetric weights per channel"
    if group.a_bits:
        kind = "symmetric" if group.a_symmetric else "asymmetric"
        known = group.a_bits == 8 or (group.a_bits == 4 and group.a_symmetric)
        return f"{_symmetry(group)} weights with {f'A{group.a_bits} {kind}' if known else 'other inputs'}"
    return _weights_row(group)


def _weights_row(group: Group) -> str:
    bits = f"W{group.bits}" if group.bits in (4, 8) else "W2 W3 W5 W6 W7"
    return f"{bits} {_symmetry(group)}"


def _symmetry(group: Group) -> str:
    return "symmetric" if group.symmetric else "asymmetric"


def _siblings_differ(by_module: Mapping[str, Group | None]) -> bool:
    """Whether layers that an engine merges into one are quantized differently, or only some of them are."""
    for names in SAME_INPUT:
        for module, group in by_module.items():
            parent, _, last = module.rpartition(".")
            siblings = [by_module[f"{parent}.{name}"] for name in names if f"{parent}.{name}" in by_module]
            if last in names and any(other != group for other in siblings):
                return True
    return False


def _reading(reader: str, rows: Sequence[str]) -> Reading:
    cells = [TABLE[row][reader] for row in rows]
    outcome = max((cell.outcome for cell in cells), key=_WORST_LAST.index)
    deciding = [cell for cell in cells if cell.outcome == "no"] or cells
    known = max((cell.known for cell in deciding), key=_SUREST_FIRST.index)
    notes = tuple(dict.fromkeys(cell.note for cell in deciding if cell.note))
    return Reading(outcome, known, notes)
