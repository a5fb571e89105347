"""Models larger than memory: everything but the decoder blocks is loaded, and blocks are read when their turn comes."""

from __future__ import annotations

import contextlib
import json
import logging as python_logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from . import __version__
from .config import QllmConfig
from .errors import CheckpointError, ConfigError
from .inplace import adopt_
from .loading import check_float, load_whole, local_folder, model_on_meta
from .methods.blocks import Blocks, block_list
from .methods.calibration import Calibration
from .methods.engine import calibrate_
from .methods.residence import OnDisk
from .methods.work import SCRATCH, Work
from .plan import make_plan
from .revision import revision_of
from .scratch import temporary_folder
from .steady import unchanged
from .whole import claiming

_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""What transformers calls ways to spread a model over devices."""


@dataclass(frozen=True)
class Offloaded:
    """A float model whose decoder blocks are on the meta device.

    Attributes:
        weights: full name of a parameter of a block -> its tensor, read from disk on access.
        blocks: runs single blocks, once they have their weights.
    """

    model: PreTrainedModel
    weights: Mapping[str, Tensor]
    blocks: Blocks


@contextlib.contextmanager
def offloaded(
    name_or_path: str, *, dtype: str = "auto", trust_remote_code: bool = False, scratch: Path | None = None
) -> Iterator[Offloaded]:
    """A float model of which only what is outside the decoder blocks is in memory.

    Weights whose form in the checkpoint is not the one in memory (experts that are fused) are rewritten to a temporary
    folder, one at a time; it is removed at the end.

    Args:
        scratch: where that folder is made; by default where the system has temporary ones.

    Raises:
        CheckpointError, ModelError: as `loading.load_model`.
    """
    check_float(name_or_path, trust_remote_code=trust_remote_code)
    shapes = model_on_meta(name_or_path, dtype=dtype, trust_remote_code=trust_remote_code)
    name = block_list(shapes, make_plan(shapes, QllmConfig(w=4)))
    device_map = _device_map(shapes, name)
    bars = logging.is_progress_bar_enabled()
    rewritten: contextlib.AbstractContextManager[Any] = (
        tempfile.TemporaryDirectory(prefix=SCRATCH, dir=scratch) if scratch else temporary_folder("qllm-offload")
    )
    with rewritten as rewritten_folder:
        told = python_logging.getLogger("accelerate.big_modeling")
        level = told.level
        told.setLevel(python_logging.ERROR)  # that blocks are on the meta device is what was asked for
        logging.disable_progress_bar()
        try:
            model = load_whole(
                name_or_path,
                dtype=dtype,
                device_map=device_map,
                offload_folder=rewritten_folder,
                trust_remote_code=trust_remote_code,
            )
        finally:
            told.setLevel(level)
            if bars:
                logging.enable_progress_bar()
        weights = _weights_map(model)
        remove_hook_from_module(model, recurse=True)
        # what accelerate sets on instances: without it the model is an ordinary one again
        for attribute in ("hf_device_map", "to", "cuda"):
            model.__dict__.pop(attribute, None)
        for module in model.modules():
            module.__dict__.pop("forward", None)
        yield Offloaded(model.eval(), weights, Blocks(model, name))


def quantize_streamed(
    name_or_path: str,
    config: QllmConfig,
    calibration: Calibration,
    folder: Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    restart: bool = False,
    progress: bool = False,
) -> tuple[PreTrainedModel, Work]:
    """The packed model, made with one float block in memory at a time, and the work folder to remove when it is saved.

    A run that was killed goes on where it stopped when it is called again with the same arguments.

    Args:
        device: where blocks are computed (`computing_device`).

    Raises:
        CheckpointError: the work folder belongs to another run.
        BusyError: another process is at it.
        CalibrationError: the text is no use for this model.
        CheckpointError, ModelError: as `loading.load_model`.
    """
    computes_on = computing_device(device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(claiming(folder))
        if (source_folder := local_folder(name_or_path)) is not None:
            stack.enter_context(unchanged(source_folder))
        shapes = model_on_meta(name_or_path, dtype=dtype, trust_remote_code=trust_remote_code)
        work = Work(folder, _identity(name_or_path, shapes, config, calibration, dtype), restart=restart)
        for index in range(work.done):  # to find what was damaged now, and not after hours of further work
            work.load_block(index)
        source = stack.enter_context(
            offloaded(name_or_path, dtype=dtype, trust_remote_code=trust_remote_code, scratch=work.scratch())
        )
        residence = OnDisk(source.blocks.modules, source.weights, source.blocks.name, work, computes_on)
        plan = calibrate_(
            source.model,
            config,
            calibration,
            blocks=source.blocks,
            residence=residence,
            work=work,
            progress=progress,
        )
        adopt_(source.model, config, plan)
        return source.model, work


def computing_device(device_map: str | None) -> torch.device:
    """The one device that a device map means: blocks go through it one after another, so they are never spread.

    Raises:
        ConfigError: there is no such device.
    """
    if device_map in _SPREAD:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(device_map or "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"there is no device {device_map!r} here ({str(error).splitlines()[0]}). Give --device-map cpu, cuda, "
            "cuda:1, ..., or auto for the accelerator, if there is one."
        ) from None
    return device


def work_folder(out_dir: Path) -> Path:
    """Where a calibration whose result goes to `out_dir` keeps what it has done: hidden, beside it."""
    out_dir = out_dir.expanduser().absolute()
    return out_dir.with_name(f".{out_dir.name}.calibration")


def _identity(
    name_or_path: str, shapes: PreTrainedModel, config: QllmConfig, calibration: Calibration, dtype: str
) -> dict[str, Any]:
    """What makes two runs the same: the files, the config, the tokens, the program."""
    folder = local_folder(name_or_path)
    stored = {key: value for key, value in config.to_dict().items() if key not in ("calibration", "input_scales")}
    return {
        "model": str(folder.resolve()) if folder else name_or_path,
        "revision": revision_of(name_or_path, shapes),
        "config": json.loads(json.dumps(stored, sort_keys=True, default=str)),
        "calibration": calibration.summary(),
        "dtype": dtype,
        "qllm_hf": __version__,
    }


def _device_map(model: nn.Module, blocks: str) -> dict[str, str]:
    """Blocks on disk, the rest in memory: the largest modules that hold no block."""
    device_map = {blocks: "disk"}
    for name, _ in model.named_modules():
        if name == blocks or name.startswith(f"{blocks}.") or not name:
            continue
        holds_blocks = blocks.startswith(f"{name}.")
        inside = any(name.startswith(f"{other}.") for other in device_map)
        if not holds_blocks and not inside:
            device_map[name] = "cpu"
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        if not any(name.startswith(f"{module}.") for module in device_map):
            device_map[name] = "cpu"
    return device_map


def _weights_map(model: nn.Module) -> Mapping[str, Tensor]:
    """accelerate's way to the tensors on disk, by their full names."""
    for module in model.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            mapping: Any = getattr(one, "weights_map", None)
            if mapping is not None:
                dataset: Mapping[str, Tensor] = getattr(mapping, "dataset", mapping)
                return dataset
    raise CheckpointError("nothing of this model was left on disk.")
