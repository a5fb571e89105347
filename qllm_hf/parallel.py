"""Tensor parallelism: packed weights cut over processes, on the boundaries of groups.

transformers cuts parameters by a plan that names float weights. A style cuts rows ("colwise": each process computes
some of the out_features) or columns ("rowwise": each reads some of the in_features). Rows of a packed weight are rows
of its words, scales and zero points, so nothing is to do. Columns can be cut where groups end:

    4 bits, groups of 32, in_features 256, 2 processes: 128 codes, 32 words, 4 groups each
    4 bits, groups of 32, in_features 128, 2 processes:  64 codes, 16 words, 2 groups each, inside a block of 128

Inside a block the codes of a part lie in all words of the block (`qllm_hf.layout`). There each process packs its
codes by themselves, and rows are put together again when the model is saved. A group that is the whole row, or the
whole matrix, has one scale, which every process holds; to find it, they agree on the range.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from transformers import PreTrainedModel
from transformers.distributed import tensor_parallel

from .errors import ModelError
from .layout import BLOCK, WORD_BITS, group_count
from .nn import PackedModule
from .nn.parameters import SUFFIXES
from .packed import PackedTensor
from .packing import pack, unpack
from .patterns import numberless
from .plan import Entry, Plan
from .scheme import PER_TENSOR, Spec
from .uniform import affine_params, choose_codes, group, ungroup

WHOLE = "qllm_whole"
"""The style of a parameter that every process holds as a whole, while others of its module are cut."""

FUSED = "packed_colwise"
"""The style of gate and up in one weight: each process computes some rows of both."""
ROWS = ("colwise", "colwise_rep", "colwise_gather_output", FUSED)
COLUMNS = ("rowwise", "rowwise_rep", "rowwise_split_input")
# Projections whose output is heads, and what says how many: each process needs whole ones.
HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads", "v_proj": "num_key_value_heads"}
# Before transformers 5.19 there is no size of expert parallelism, only whether.
OTHER_KINDS = ("fsdp_size", "dp_replicate_size", "ep_size", "enable_expert_parallel", "pp_size")
LARGEST_SIZE = 64


class Cut(NamedTuple):
    """A packed weight that is cut, and along which dimension of [.., O, I]."""

    entry: Entry
    along_columns: bool


def tensor_parallel_size(model: PreTrainedModel) -> int:
    """The number of processes that a model is being cut over, 1 for an ordinary one."""
    return int(getattr(_distributed(model), "tp_size", None) or 1)


def find_cuts(model: PreTrainedModel, plan: Plan) -> list[Cut]:
    """The weights that the model's tensor parallel plan cuts.

    Raises:
        ModelError: the plan cuts a packed weight in a way that nobody has tried.
    """
    styles, cuts = _styles(model), []
    for entry in plan.quantized():
        style = styles.get(numberless(entry.name), styles.get(numberless(entry.module)))
        if style in COLUMNS or style in ROWS:
            cuts.append(Cut(entry, style in COLUMNS))
        elif style is not None and numberless(entry.name) in styles:
            raise ModelError(
                f"{entry.name}: the tensor parallel plan cuts it {style!r}, which packed weights cannot be. Keep it in "
                f"floating point: modules_to_not_convert=[{entry.module!r}]."
            )
    return cuts


def check_cuts(model: PreTrainedModel, cuts: list[Cut], size: int) -> None:
    """Raises ModelError if weights or heads cannot be cut over `size` processes, and says over how many they can be."""
    problem = _problem(model, cuts, size)
    if problem is None:
        return
    fitting = [str(other) for other in range(1, LARGEST_SIZE + 1) if _problem(model, cuts, other) is None]
    raise ModelError(f"tensor parallelism over {size} processes: {problem} Sizes that work: {', '.join(fitting)}.")


def check_whole(model: PreTrainedModel, doing: str, instead: str) -> None:
    """Raises ModelError for a model that is cut over processes: `doing` needs whole weights; `instead` is the way."""
    if any(hasattr(parameter, "placements") for parameter in model.parameters()):
        raise ModelError(f"{doing} needs whole weights, and this model is cut over several processes. {instead}")


def check_parallel(model: PreTrainedModel, plan: Plan, *, pre_quantized: bool, packs_after_loading: bool) -> list[Cut]:
    """What will be cut in a model that is about to be loaded; nothing in an ordinary one.

    Raises:
        ModelError: it cannot be cut so, or not before it is quantized.
    """
    for name in OTHER_KINDS:
        value = getattr(_distributed(model), name, None) or 1
        if value is True or value > 1:
            raise ModelError(
                f"{name}={value}: packed weights can be cut by tensor parallelism alone, DistributedConfig(tp_size=N). "
                "FSDP, expert and pipeline parallelism are for floating-point models."
            )
    size = tensor_parallel_size(model)
    if size == 1:
        return []
    once = "Quantize in one process, save, and load what was saved in parallel."
    if not _styles(model):
        raise ModelError(f"transformers has no plan to cut {model.config.model_type} models over processes.")
    if packs_after_loading:
        raise ModelError(f"a method that looks at whole weights cannot run while they are cut in {size}. {once}")
    tied = [entry.module for entry in plan.quantized() if entry.tied] if not pre_quantized else []
    if tied:
        raise ModelError(f"{tied[0]} is tied to the embedding, which is cut in {size} before it is quantized. {once}")
    cuts = find_cuts(model, plan)
    check_cuts(model, cuts, size)
    if pre_quantized and loses_strides():
        _check_fused(model, cuts)
    return cuts


def loses_strides() -> bool:
    """Whether this torch calls some rows of both gate and up one piece of the whole, as 2.8 does.

    transformers believes it when it cuts what is stored as one tensor: one process would get gate, the other up.
    """
    return bool(_StridedShard(0, split_factor=2).is_shard())


def _check_fused(model: PreTrainedModel, cuts: list[Cut]) -> None:
    styles = _styles(model)
    for entry, _ in cuts:
        if FUSED in (styles.get(numberless(entry.name)), styles.get(numberless(entry.module))):
            raise ModelError(
                f"{entry.name} holds gate and up in one tensor, which transformers cuts in the wrong places with torch "
                f"{torch.__version__}. Use a newer torch, or keep it in floating point: "
                f"modules_to_not_convert=[{entry.module!r}]."
            )


def mark_cuts_(model: PreTrainedModel, cuts: list[Cut]) -> None:
    """Let packed modules know in how many parts their rows are."""
    for entry, along_columns in cuts:
        module = model.get_submodule(entry.module)
        assert isinstance(module, PackedModule)
        if along_columns:
            module.row_parts = {**(module.row_parts or {}), _own_name(entry): tensor_parallel_size(model)}


def whole_parameters(model: PreTrainedModel, cuts: list[Cut], *, pre_quantized: bool) -> dict[str, str]:
    """{name with * for numbers: style} of packed parameters that every process loads as a whole."""
    whole: list[str] = []
    for entry, along_columns in cuts:
        assert entry.weight is not None
        name, size = numberless(entry.name), tensor_parallel_size(model)
        if _one_scale(entry, along_columns):
            whole += [name + SUFFIXES["scale"], name + SUFFIXES["zero_point"]]
        if entry.input_scale and not along_columns:
            whole.append(f"{numberless(entry.module)}.input_scale")
        if entry.input_order:  # of a layer that is cut along its rows: each process reads the whole input
            whole.append(f"{numberless(entry.module)}.input_order")
        if pre_quantized and along_columns and is_inside_block(entry.shape[-1], size, entry.weight.bits):
            whole.append(name + SUFFIXES["words"])
    return dict.fromkeys(whole, WHOLE)


def pack_shard(module: Any, name: str, shard: Tensor) -> PackedTensor | None:
    """The packed form of this process's part of a weight whose one scale belongs to all parts, else None."""
    placeholder = module._parameters.get(name)
    spec, length = module.weight_specs[name]
    if not hasattr(placeholder, "placements"):
        return None
    parts = module.parts(name)
    spans = spec.group_size == PER_TENSOR or (parts > 1 and group_count(length, spec.group_size) == 1)
    return encode_part(shard, spec, _group(placeholder.device_mesh)) if spans else None


def encode_part(x: Tensor, spec: Spec, process_group: Any) -> PackedTensor:
    """x [.., O, I / N], this process's part of a weight, with the scale that the whole of it has, packed."""
    groups = group(x, spec)
    ends = torch.cat([groups.amax(-1, keepdim=True), -groups.amin(-1, keepdim=True)], -1).contiguous()
    dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=process_group)
    scale, zero_point = affine_params(groups, spec, low=-ends[..., 1:], high=ends[..., :1])
    codes = ungroup(choose_codes(groups, scale, zero_point, spec), x.shape, spec).to(torch.uint8)
    zeros = None if spec.symmetric else zero_point.squeeze(-1).to(torch.uint8)
    return PackedTensor(pack(codes, spec.bits), scale.squeeze(-1), zeros, spec, x.shape[-1])


def finish_cuts_(model: PreTrainedModel) -> None:
    """After loading: whole rows of words are cut inside their blocks, and modules know with whom they share rows."""
    for module in model.modules():
        if not isinstance(module, PackedModule):
            continue
        module.is_cut = any(hasattr(parameter, "placements") for parameter in module._parameters.values())
        for name in module.row_parts or ():
            words, mesh = module._parameters[name + SUFFIXES["words"]], _mesh(model)
            assert words is not None
            if not hasattr(words, "placements"):
                module._parameters[name + SUFFIXES["words"]] = _cut_words(words, *module.weight_specs[name], mesh)
            if module.activation_spec is not None:
                module.range_group = _group(mesh)


def whole_words(model: PreTrainedModel) -> dict[str, Tensor]:
    """{name: words int16} of all weights that are cut, as one process would have packed them.

    Every process has to call this. transformers itself gathers the rest when it saves a model, but no backend of
    torch.distributed moves 16-bit integers.
    """
    found = {}
    for prefix, module in model.named_modules():
        for name, (spec, length) in module.weight_specs.items() if isinstance(module, PackedModule) else ():
            words: Any = module._parameters[name + SUFFIXES["words"]]
            if not hasattr(words, "placements"):
                continue
            whole, parts = _gathered(words), module.parts(name)
            if is_inside_block(length, parts, spec.bits):
                pieces = (unpack(piece, spec.bits, length // parts) for piece in whole.chunk(parts, -1))
                whole = pack(torch.cat(list(pieces), -1), spec.bits)
            found[f"{prefix}.{name}{SUFFIXES['words']}"] = whole
    return found


def tied_copies(model: PreTrainedModel) -> list[str]:
    """Names of distributed parameters that are tied to another one, which transformers would save a second time."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [name for name in model.all_tied_weights_keys if hasattr(parameters.get(name), "placements")]


def _gathered(words: Any) -> Tensor:
    """The parts that all processes hold of a distributed tensor of words, beside each other."""
    shape = torch.Size((*words.shape[:-1], 2 * words.shape[-1]))
    own = words.to_local().contiguous().view(torch.uint8)
    as_bytes = DTensor.from_local(
        own, words.device_mesh, words.placements, run_check=False, shape=shape, stride=_strides(shape)
    )
    whole: Tensor = as_bytes.full_tensor()
    return whole.contiguous().view(words.dtype)


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _cut_words(words: Tensor, spec: Spec, length: int, mesh: Any) -> torch.nn.Parameter:
    """This process's part of whole rows of words, packed by itself, as the distributed tensor that it stands for."""
    part = length // mesh.size()
    start = part * mesh.get_local_rank()
    own = pack(unpack(words, spec.bits, length)[..., start : start + part].contiguous(), spec.bits)
    placed = DTensor.from_local(own, mesh, [Shard(-1)], run_check=False, shape=words.shape, stride=words.stride())
    parameter = torch.nn.Parameter(placed, requires_grad=False)
    parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # as transformers marks what it loaded
    return parameter


def _problem(model: PreTrainedModel, cuts: list[Cut], size: int) -> str | None:
    """Why a model cannot be cut in `size`, one sentence with what would help, or None."""
    styles, config = _styles(model), model.config.get_text_config(decoder=True)
    for name, style in styles.items():
        number = HEADS.get(name.rpartition(".")[2])
        heads = getattr(config, number, None) if number and style == "colwise" else None
        if isinstance(heads, int) and heads % size:
            return f"{name} has {heads} heads ({number}), which {size} processes cannot share."
    return next((fault for cut in cuts if (fault := _fault(*cut, size)) is not None), None)


def _fault(entry: Entry, along_columns: bool, size: int) -> str | None:
    """Why a weight cannot be cut in `size`, or None."""
    assert entry.weight is not None
    length, spec = entry.shape[-1], entry.weight
    if size == 1 or not along_columns:
        return None
    if length % size:
        return f"{entry.name} has {length} in_features, which {size} processes cannot share."
    if entry.input_order:
        return (
            f"{entry.name} reads its inputs in a stored order (act order), so a part of its columns needs inputs that "
            "other processes have."
        )
    part = length // size
    if not _one_scale(entry, along_columns) and part % spec.group_size:
        fitting = next((g for g in (128, 64, 32, 16) if g < spec.group_size and part % g == 0), None)
        hint = (
            f"w_group_size={fitting} would fit (or -1, one group per row)" if fitting else "w_group_size=-1 would fit"
        )
        return (
            f"{entry.name} has {length} in_features, {part} for each of {size}, which is no whole number of groups of "
            f"{spec.group_size}. {hint}."
        )
    if part % (2 if spec.bits == 8 else WORD_BITS):
        return f"{entry.name} has {length} in_features, {part} for each of {size}, which is no whole number of words."
    return None


def _one_scale(entry: Entry, along_columns: bool) -> bool:
    """Whether a scale belongs to several of the parts."""
    assert entry.weight is not None
    size = entry.weight.group_size
    return size == PER_TENSOR or (along_columns and group_count(entry.shape[-1], size) == 1)


def is_inside_block(length: int, parts: int, bits: int) -> bool:
    """Whether rows of words, cut in so many parts, would not be rows of words; 8-bit codes lie in their order."""
    return parts > 1 and bits != 8 and (length // parts) % BLOCK != 0


def _styles(model: PreTrainedModel) -> dict[str, str]:
    """The tensor parallel plan, {name with * for numbers: style}, with what the caller changed in it."""
    given = getattr(_distributed(model), "tp_plan", None)
    if isinstance(given, dict):
        return {**(model._tp_plan or {}), **given} if given else {}
    return dict(model._tp_plan or {})


def _own_name(entry: Entry) -> str:
    return entry.name.removeprefix(entry.module + ".")


def _distributed(model: PreTrainedModel) -> Any:
    return getattr(model.config, "distributed_config", None)


def _mesh(model: PreTrainedModel) -> Any:
    mesh: Any = model._device_mesh
    return mesh if mesh.ndim == 1 else mesh["tp"]


def _group(mesh: Any) -> Any:
    return mesh.get_group() if mesh.ndim == 1 else mesh.get_group("tp")


def register() -> None:
    """Make transformers know the style of what is not cut. Safe to call again."""
    styles: Any = tensor_parallel.ALL_PARALLEL_STYLES  # type: ignore[attr-defined]
    styles.register(WHOLE, tensor_parallel.TensorParallelLayer())


register()
