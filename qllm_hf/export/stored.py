"""A packed checkpoint on disk: which weights it holds, under which names, and their rows when they are wanted.

Names are those that the model's own float checkpoints have. Where transformers merges the experts of a layer into one
tensor while it loads, its own rules, run backwards on the numbers of rows instead of on rows, tell which rows of the
merged tensor belong to which expert's matrix: no architecture is named here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ..checkpoint import ORDER, PACKED, SCALE, ZERO_POINT, Checkpoint, read_checkpoint
from ..config import QllmConfig
from ..errors import CheckpointError
from ..input_order import check_stored_orders
from ..loading import check_stored, local_folder, model_on_meta, stored_config
from ..packed import PackedTensor
from ..plan import Entry, Plan, make_plan
from ..preflight import check_config
from ..scheme import PER_TENSOR
from ..sound import check_parts

WEIGHT = ".weight"


class Piece(NamedTuple):
    """Rows of a packed weight that float checkpoints store as a matrix of its own; most weights are one piece.

    Attributes:
        name: of the matrix in float checkpoints, such as `model.layers.0.mlp.experts.3.up_proj.weight`.
        expert: which matrix of a 3-D weight; None if the weight is one matrix.
        rows: which of its rows.
        transposed: float checkpoints hold it as [I, O].
    """

    name: str
    expert: int | None
    rows: slice
    transposed: bool


@dataclass(frozen=True)
class StoredWeight:
    """A packed weight: what the plan says of it, its name in the files, its pieces."""

    entry: Entry
    base: str
    pieces: tuple[Piece, ...]

    @property
    def input_scale_name(self) -> str:
        """Name of the vector that the layer multiplies its input by, where it has one."""
        return self.base.removesuffix(WEIGHT) + ".input_scale"

    @property
    def input_order_name(self) -> str:
        """Name of the order that the layer reads its input in, where it has one."""
        return self.base.removesuffix(WEIGHT) + ORDER

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that it stands for: as float checkpoints have them, and transformers where it differs."""
        names = [piece.name.removesuffix(WEIGHT) for piece in self.pieces]
        return tuple(dict.fromkeys([*names, self.entry.module] if self.entry.kind != "experts" else names))

    @property
    def is_layers(self) -> bool:
        """Whether float checkpoints store it as matrices of layers with names, as other formats need it. Theirs are
        [O, I], and so are the packed rows: a Conv1D, whose float matrix is [I, O], is a linear layer to them."""
        is_turned = self.entry.kind == "experts" and any(piece.transposed for piece in self.pieces)
        return all(piece.name.endswith(WEIGHT) for piece in self.pieces) and not is_turned


class StoredModel:
    """An open packed checkpoint; a context manager.

    Attributes:
        config: how it is quantized.
        checkpoint: its files, found complete.
        plan: of the float model.
        weights: packed weights in the order of the plan.
        others: names of all further tensors, in the order of the files; not the guard.
    """

    def __init__(self, folder: Path, config: QllmConfig, checkpoint: Checkpoint, model: PreTrainedModel) -> None:
        self.folder, self.config, self.checkpoint, self._model = folder, config, checkpoint, model
        self._embeddings = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
        self.plan: Plan = make_plan(model, config, check_patterns=False)
        self.weights = tuple(_stored(model, entry, checkpoint) for entry in self.plan.quantized())
        self._open = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        for file in checkpoint.files:
            handle = self._open.enter_context(safe_open(file, framework="pt"))
            self._files |= dict.fromkeys(handle.keys(), handle)
        parts = {weight.base + end for weight in self.weights for end in (PACKED, SCALE, ZERO_POINT)}
        parts |= {weight.input_scale_name for weight in self.weights if weight.entry.input_scale}
        parts |= {weight.input_order_name for weight in self.weights if weight.entry.input_order}
        guards = {weight.base for weight in self.weights}
        self.others = [name for name in checkpoint.tensors if name not in parts | guards]

    def __enter__(self) -> StoredModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def kept(self) -> list[str]:
        """What stays in floating point: names of layers as float checkpoints have them, `re:` patterns for experts.

        Every matrix of the files counts, also where the model keeps it in no linear layer, as transformers does with
        some routers: for other programs it is one.
        """
        found = {name.removesuffix(WEIGHT): None for name in self.others if self._is_matrix_of_layer(name)}
        for entry in self.plan.kept():
            if entry.kind == "linear":  # transformers may have another name for it, and looks for its own
                found[entry.module] = None
            for piece in _pieces(self._model, entry):
                if piece.name.endswith(WEIGHT):
                    found[piece.name.removesuffix(WEIGHT)] = None
                if piece.expert is not None:
                    experts = ".".join(piece.name.split(".")[:-3])
                    found = {name: None for name in found if not name.startswith(f"{experts}.")}
                    found[f"re:{re.escape(experts)}[.].*"] = None
        return list(found)

    def _is_matrix_of_layer(self, name: str) -> bool:
        is_matrix = name.endswith(WEIGHT) and len(self.checkpoint.tensors[name].shape) == 2
        return is_matrix and name.removesuffix(WEIGHT) not in self._embeddings

    def tensor(self, name: str) -> Tensor:
        """A tensor of the files as it is."""
        found: Tensor = self._files[name].get_tensor(name)
        return found

    def input_scale(self, weight: StoredWeight) -> Tensor | None:
        """What the layer multiplies its input by first, [I], or None."""
        if not weight.entry.input_scale:
            return None
        return self.tensor(weight.input_scale_name)

    def input_order(self, weight: StoredWeight) -> Tensor | None:
        """Which input each column of the packed rows multiplies, int32 [I], or None."""
        if not weight.entry.input_order:
            return None
        return self.tensor(weight.input_order_name)

    def packed(self, weight: StoredWeight, piece: Piece | None = None) -> PackedTensor:
        """A piece of a packed weight [O, I], or all of it; only these rows are read.

        A weight with one scale for the whole matrix comes back with that scale for each row: the same numbers.
        """
        spec = weight.entry.weight
        assert spec is not None
        parts = {end: self._part(weight.base + end, piece, spec.group_size) for end in (PACKED, SCALE)}
        zero_point = None if spec.symmetric else self._part(weight.base + ZERO_POINT, piece, spec.group_size)
        check_parts(weight.base, spec.bits, parts[SCALE], zero_point)
        rows_of_their_own = spec if piece is None or spec.group_size != PER_TENSOR else replace(spec, group_size=-1)
        return PackedTensor(parts[PACKED], parts[SCALE], zero_point, rows_of_their_own, weight.entry.shape[-1])

    def _part(self, name: str, piece: Piece | None, group_size: int) -> Tensor:
        if piece is None:
            return self.tensor(name)
        stored = self._files[name].get_slice(name)
        whole_matrix = group_size == PER_TENSOR and not name.endswith(PACKED)
        rows = slice(None) if whole_matrix else piece.rows
        found: Tensor = stored[rows] if piece.expert is None else stored[piece.expert, rows]
        return found.expand(piece.rows.stop - piece.rows.start, -1) if whole_matrix else found


@contextlib.contextmanager
def open_stored(name_or_path: str, *, trust_remote_code: bool = False) -> Iterator[StoredModel]:
    """A checkpoint that `qllm-hf quantize` or `save_pretrained` wrote, open for reading.

    Raises:
        CheckpointError: it is no folder here, holds a float model, or files are missing, damaged or half written.
    """
    folder = local_folder(name_or_path)
    if folder is None:
        raise CheckpointError(
            f"{name_or_path!r} is no folder here, and export reads files. "
            f"Download it first: hf download {name_or_path} --local-dir DIR."
        )
    config = stored_config(name_or_path, trust_remote_code=trust_remote_code)
    if config is None:
        raise CheckpointError(
            f"{name_or_path!r} holds a float model, and there is nothing to export. Quantize it first: "
            f"qllm-hf quantize {name_or_path} --scheme W4 -o DIR."
        )
    checkpoint = read_checkpoint(folder)
    check_config(checkpoint, trust_remote_code=trust_remote_code)
    model = model_on_meta(name_or_path, trust_remote_code=trust_remote_code)
    check_stored(model, config, checkpoint)
    with StoredModel(folder, config, checkpoint, model) as stored:
        check_stored_orders(checkpoint.files, sum(weight.entry.input_order for weight in stored.weights))
        yield stored


def _stored(model: PreTrainedModel, entry: Entry, checkpoint: Checkpoint) -> StoredWeight:
    pieces = tuple(_pieces(model, entry))
    base = pieces[0].name
    if entry.kind == "experts" and base.endswith(WEIGHT):  # PREFIX.experts.0.w1.weight -> PREFIX.experts.gate_up_proj
        base = ".".join([*base.split(".")[:-3], entry.name.rpartition(".")[2]])
    if base + PACKED not in checkpoint.tensors:
        base = entry.name
    if base + PACKED not in checkpoint.tensors:
        raise CheckpointError(
            f"{str(checkpoint.folder)!r} has no packed tensor for {entry.name}: this architecture stores its weights "
            "under names that export does not know."
        )
    return StoredWeight(entry, base, pieces)


def _pieces(model: PreTrainedModel, entry: Entry) -> Iterator[Piece]:
    """The matrices that a float checkpoint of this model holds in the place of one weight."""
    if entry.kind != "experts":
        (name,) = revert_weight_conversion(model, {entry.name: torch.empty(entry.shape, device="meta")})
        yield Piece(name, None, slice(0, entry.shape[0]), entry.kind == "conv1d")
        return
    experts, rows, _ = entry.shape
    transposed: bool = model.get_submodule(entry.module).is_transposed  # type: ignore[assignment]
    # twice each: a dimension of one element does not survive the way back in every release of transformers
    numbers = torch.arange(experts * rows).view(experts, rows, 1).expand(-1, -1, 2)
    numbers = numbers.mT if transposed else numbers
    parts = revert_weight_conversion(model, {entry.name: numbers})
    if any(part.dim() != 2 for part in parts.values()):
        (name,) = parts  # stored as it is, 3-D
        yield Piece(name, None, slice(0, experts), transposed)
        return
    for name, part in parts.items():
        lies = part.shape[1] != 2 or not part[:, 0].equal(part[:, 1])
        numbered = part[0] if lies else part[:, 0]
        count, (expert, first) = len(numbered), divmod(int(numbered[0]), rows)
        if not numbered.equal(torch.arange(count) + int(numbered[0])):
            raise CheckpointError(f"{name} is made of rows of {entry.name} that do not follow each other.")
        yield Piece(name, expert, slice(first, first + count), lies)
