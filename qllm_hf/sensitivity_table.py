"""The table that says what each layer's bits cost a model, as JSON holds it. `methods.sensitivity` measures it.

{"format": 1, "group_size": 128, "symmetric": false, "calibration": {..},
 "layers": {"model.layers.0.mlp.up_proj": {"elements": 4096, "bits": {"3": {"size": 13056, "kl": 0.0021}, ..}}}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .scheme import ALLOWED_BITS

SENSITIVITY_FORMAT = 1
"""Version of a sensitivity table."""


def read_table(source: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """A sensitivity table, checked.

    Raises:
        ConfigError: it is none, or of a newer format.
    """
    table: Any = source
    if isinstance(source, str | Path):
        try:
            table = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{str(source)!r} is no sensitivity table: {error}") from None
    form = table.get("format") if isinstance(table, Mapping) else None
    if form != SENSITIVITY_FORMAT:
        raise ConfigError(
            f"this is no sensitivity table of format {SENSITIVITY_FORMAT} (format: {form!r}). Make one with "
            "qllm_hf.measure_sensitivity(model, calibration=...).to_dict()."
        )
    layers, group_size, symmetric = (table.get(key) for key in ("layers", "group_size", "symmetric"))
    if not isinstance(group_size, int) or not isinstance(symmetric, bool) or not isinstance(layers, Mapping):
        raise ConfigError("the sensitivity table is damaged: it lacks layers, group_size or symmetric. Measure again.")
    damaged = next((name for name, layer in layers.items() if not _is_measured(layer)), None)
    if damaged is not None or not layers:
        where = f"at layer {damaged!r}" if layers else "it has no layers"
        raise ConfigError(f"the sensitivity table is damaged: {where}. Measure again.")
    checked: Mapping[str, Any] = table
    return checked


def _is_measured(layer: Any) -> bool:
    """Whether this is what a sensitivity table says of a layer: its elements, and size and cost of each bit-width."""
    try:
        sizes = [layer["elements"], *(value["size"] for value in layer["bits"].values())]
        costs = [value["kl"] for value in layer["bits"].values()]
        widths = {int(bits) for bits in layer["bits"]}
        sound = all(isinstance(size, int) and size > 0 for size in sizes) and all(map(math.isfinite, costs))
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return sound and bool(widths) and widths <= set(ALLOWED_BITS)
