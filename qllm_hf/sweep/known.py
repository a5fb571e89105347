"""Which scores are there already: of the same questions, and of a model that was quantized in the same way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..config import QllmConfig
from ..evaluation.record import Record
from ..evaluation.store import IDENTITY
from ..methods.calibration import Calibration

_CALIBRATED: Final = frozenset({"calibration", "input_scales"})
"""Keys of a config that calibration fills in."""


def identity_of(record: Record) -> dict[str, Any]:
    """What another record of the same measurement says too."""
    return {key: getattr(record, key) for key in IDENTITY}


def find_known(records: Sequence[Record], wanted: Mapping[str, Any], config: QllmConfig | None) -> Record | None:
    """The last record of the questions and model `wanted`, quantized as `config` says; None is the float model.

    `wanted` need not say how the model was quantized: before it is loaded, nobody knows what calibration will fill in.
    """
    for record in reversed(records):
        if all(getattr(record, key) == value for key, value in wanted.items() if key != "quantization") and (
            not record.quantization if config is None else _agree(record.quantization, config)
        ):
            return record
    return None


def _agree(stored: dict[str, Any], config: QllmConfig) -> bool:
    """Whether a record's model was quantized as `config` says, and calibrated on the same tokens."""
    wanted: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    same = stored.keys() | wanted.keys()
    if config.needs_calibration:
        if not isinstance(config.calibration, Calibration) or stored.get("calibration") != config.calibration.summary():
            return False
        same -= _CALIBRATED
    return all(stored.get(key) == wanted.get(key) for key in same)
