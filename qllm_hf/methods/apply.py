"""Carries out a config's method on a float model that is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..config import QllmConfig
from ..method import AWQ, RTN, options_of
from ..plan import Plan, make_plan
from ..surgery import pack_modules_
from .blocks import Blocks, block_list
from .calibration import Calibration, calibration_for
from .engine import calibrate_
from .residence import InMemory
from .sensitivity import measure_sensitivity
from .stored import pack_stored_


def pack_by_method_(model: PreTrainedModel, config: QllmConfig, *, device: Any = None, progress: bool = False) -> Plan:
    """Pack the weights of a float model in place, by the method of the config. Returns the plan.

    Args:
        device: where blocks are computed; by default where they are.

    Raises:
        CalibrationError: the method needs text and there is none, or none that helps.
        ConfigError: a budget that cannot be met, or that was spent by the sensitivity table of another model.
        ModelError: the model cannot be quantized as asked.
    """
    plan = make_plan(model, config)
    if not plan.quantized():
        return plan
    if config.bits_per_weight is not None:
        config.calibration = calibration_for(config, model.config._name_or_path or model.name_or_path)
        config.spend(measure_sensitivity(model, config, progress=progress).to_dict())
        plan = make_plan(model, config)
    if config.method == RTN:
        if isinstance(config.calibration, Calibration):
            config.calibration = config.calibration.summary()
        pack_modules_(model, plan)
        return plan
    awq: Any = options_of(config.method, config.method_options).get(AWQ)
    if awq is not None and awq.stored:
        return pack_stored_(model, config, Path(awq.stored))
    calibration = calibration_for(config, model.config._name_or_path or model.name_or_path)
    blocks = Blocks(model, block_list(model, plan))
    residence = InMemory(blocks.modules, device)
    return calibrate_(model, config, calibration, blocks=blocks, residence=residence, progress=progress)
