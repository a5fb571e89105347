"""The table that says what each layer's bits cost a model, as JSON holds it. `methods.sensitivity` measures it.

{"format": 1, "group_size": 128, "symmetric": false, "calibration": {..},
 "layers": {"model.layers.0.mlp.up_proj": {"elements": 4096, "bits": {"3": {"size": 13056, "kl": 0.0021}, ..}}}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .files import read_bytes
from .scheme import ALLOWED_BITS
from .shown import short, short_text
from .strict_json import parse_object

SENSITIVITY_FORMAT = 1
"""Version of a sensitivity table."""


def read_table(source: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """A sensitivity table, checked.

    Raises:
        ConfigError: it is none, or of a newer format.
    """
    table: Any = source
    where = f"{source}: " if isinstance(source, str | Path) else ""
    if isinstance(source, str | Path):
        try:
            table = parse_object(read_bytes(Path(source), error=ConfigError))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{str(source)!r} is no sensitivity table: {short_text(str(error))}") from None
    form = table.get("format") if isinstance(table, Mapping) else None
    if form != SENSITIVITY_FORMAT:
        raise ConfigError(
            f"{where}this is no sensitivity table of format {SENSITIVITY_FORMAT} (format: {short(form)}). Make one "
            "with qllm_hf.measure_sensitivity(model, calibration=...).to_dict()."
        )
    layers, group_size, symmetric = (table.get(key) for key in ("layers", "group_size", "symmetric"))
    if type(group_size) is not int or not isinstance(symmetric, bool) or not isinstance(layers, Mapping):
        raise ConfigError(
            f"{where}the sensitivity table is damaged: it lacks layers, group_size or symmetric. Measure again."
        )
    damaged = next((name for name, layer in layers.items() if not _is_measured(layer)), None)
    if damaged is not None or not layers:
        what = f"at layer {short(damaged)}" if layers else "it has no layers"
        raise ConfigError(f"{where}the sensitivity table is damaged: {what}. Measure again.")
    checked: Mapping[str, Any] = table
    return checked


def _is_measured(layer: Any) -> bool:
    """Whether this is what a sensitivity table says of a layer: its elements, and size and cost of each bit-width."""
    try:
        sizes = [layer["elements"], *(value["size"] for value in layer["bits"].values())]
        costs = [value["kl"] for value in layer["bits"].values()]
        widths = {int(bits) for bits in layer["bits"] if bits.isdecimal()}
        sound = all(type(size) is int and 0 < size < 2**60 for size in sizes)
        sound = sound and all(isinstance(cost, int | float) and math.isfinite(cost) for cost in costs)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return False
    return sound and len(widths) == len(layer["bits"]) > 0 and widths <= set(ALLOWED_BITS)
