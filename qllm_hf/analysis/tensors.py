"""The tensors of a model, layer by layer: weights W, inputs of linear layers A, keys K and values V.

    for each decoder block, in float32:
        look at its weights
        run the calibration tokens through it, and look at what its layers read and what it would cache

One block is looked at at a time, and each tensor of it once, so a model needs no more memory than a block of it and the
calibration tokens' hidden states. Nothing is quantized, and the model is afterwards what it was.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..config import QllmConfig
from ..methods.as_packed import running_as_packed
from ..methods.blocks import Blocks
from ..methods.calibration import Calibration, check_fits
from ..methods.engine import BATCH_TOKENS
from ..methods.residence import Residence
from ..methods.work import Hidden
from ..plan import Entry, make_plan
from .gathering import Gathered, Row


def measure(
    model: PreTrainedModel,
    *,
    blocks: Blocks,
    residence: Residence,
    calibration: Calibration | None = None,
    progress: bool = False,
) -> list[Row]:
    """A row for each linear weight that can be quantized, and with calibration for A, K and V, in the model's order.

    Weights are tried in groups of 128, inputs per token, keys and values per token and head, as in the study.

    Raises:
        CalibrationError: a tensor holds NaN or infinite values, or the tokens are not this model's.
        ModelError: the model is quantized already, or a block cannot be run on its own.
    """
    with running_as_packed(model):
        return _rows(model, blocks, residence, calibration, progress)


def _rows(
    model: PreTrainedModel, blocks: Blocks, residence: Residence, calibration: Calibration | None, progress: bool
) -> list[Row]:
    plan = make_plan(model, QllmConfig(w=4))
    batches: list[Tensor] = []
    hidden = Hidden(None)
    if calibration is not None:
        check_fits(model, calibration)
        batches = list(calibration.ids.split(max(1, BATCH_TOKENS // calibration.ids.shape[1])))
        for batch, ids in enumerate(batches):
            hidden.save(0, batch, blocks.embed(ids))
    rows: list[Row] = []
    for index in tqdm(range(len(blocks)), desc="statistics", unit="block", disable=not progress):
        prefix = f"{blocks.name}.{index}"
        entries = [entry for entry in plan.quantized() if entry.name.startswith(f"{prefix}.")]
        block = residence.open(index)
        try:
            gathered = Gathered(model, prefix, entries)
            dtypes = residence.dtypes(index)
            for entry in entries:
                dtype = dtypes[entry.name.removeprefix(f"{prefix}.")]
                gathered.see_weight(entry, weight_matrix(model, entry).to(dtype))
            with gathered.watching():
                for batch, ids in enumerate(batches):
                    gathered.next_pass()
                    given = hidden.load(index, batch).to(next(block.parameters()).device)
                    hidden.save(index + 1, batch, blocks.advance(index, ids, given))
            rows += gathered.rows(index)
        finally:
            residence.close(index)
    outside = [entry for entry in plan.quantized() if not entry.name.startswith(f"{blocks.name}.")]
    gathered = Gathered(model, "", outside)
    for entry in outside:
        gathered.see_weight(entry, weight_matrix(model, entry))
    return [*rows, *gathered.rows(None)]


def weight_matrix(model: nn.Module, entry: Entry) -> Tensor:
    """The weight as [O, I], or [E, O, I] of experts."""
    module: Any = model.get_submodule(entry.module)
    weight: Tensor = module._parameters[entry.name.rpartition(".")[2]].data
    is_transposed = entry.kind == "conv1d" or (entry.kind == "experts" and module.is_transposed)
    return weight.transpose(-1, -2) if is_transposed else weight
