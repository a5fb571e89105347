"""Carries out a config's method on a float model that is in memory."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ..config import QllmConfig
from ..method import RTN
from ..plan import Plan, make_plan
from ..surgery import pack_modules_
from .blocks import Blocks, block_list
from .calibration import calibration_for
from .engine import calibrate_
from .residence import InMemory


def pack_by_method_(model: PreTrainedModel, config: QllmConfig, *, device: Any = None, progress: bool = False) -> Plan:
    """Pack the weights of a float model in place, by the method of the config. Returns the plan.

    Args:
        device: where blocks are computed; by default where they are.

    Raises:
        CalibrationError: the method needs text and there is none, or none that helps.
        ModelError: the model cannot be quantized as asked.
    """
    plan = make_plan(model, config)
    if not plan.quantized():
        return plan
    if config.method == RTN and not config.needs_calibration:
        pack_modules_(model, plan)
        return plan
    calibration = calibration_for(config, model.config._name_or_path or model.name_or_path)
    blocks = Blocks(model, block_list(model, plan))
    residence = InMemory(blocks.modules, device)
    return calibrate_(model, config, calibration, blocks=blocks, residence=residence, progress=progress)
