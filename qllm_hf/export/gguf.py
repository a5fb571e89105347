"""A packed checkpoint as one GGUF file, for llama.cpp and what is built on it: the same weights, bit for bit.

Every weight goes into the smallest kind of block that holds its integers exactly (`formats/gguf.py`); floats keep their
dtype. What the file cannot say is refused, not rounded. llama.cpp computes otherwise than transformers, though: on a
processor it rounds the input of each product to 8 bits in blocks of 32, so logits agree to about 1 %, not bit for bit.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError, MissingExtraError, ModelError
from ..formats.gguf import BLOCK, Block, block_for, encode_blocks
from ..lock import beside, holding
from ..preflight import refusing
from ..scheme import PER_ROW, PER_TENSOR
from ..steady import unchanged
from ..whole import WAIT, whole_file
from .gguf_vocabulary import Kind, write_vocabulary
from .stored import StoredModel, StoredWeight, open_stored

# model_type -> llama.cpp's name of the architecture, and whether it has the rows that rotate together side by side
ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
PAIRED = ("q_proj", "k_proj")


@dataclass(frozen=True)
class ExportedGguf:
    """What an export wrote.

    Attributes:
        file: where.
        blocks: kind of block -> how many weights are stored in it.
        vocabulary: how llama.cpp cuts text; "none": the file takes and gives numbers of tokens only.
        bytes: of the file.
    """

    file: Path
    blocks: dict[str, int]
    vocabulary: Kind
    bytes: int


def gguf_dict(done: ExportedGguf) -> dict[str, Any]:
    """An export as JSON holds it."""
    return {"output": str(done.file), "format": "gguf", "blocks": done.blocks, "vocabulary": done.vocabulary} | {
        "bytes_after": done.bytes
    }


def gguf_text(done: ExportedGguf) -> str:
    """An export in lines: what was written, and how to run it."""
    lines = [f"gguf in {done.file}: {done.bytes / 1e6:.2f} MB"]
    lines += [f"  {count} weights: {kind}" for kind, count in done.blocks.items()]
    if done.vocabulary == "none":
        lines.append(
            "\nllama.cpp has no name for how this tokenizer cuts text: the file takes and gives numbers of tokens."
        )
    else:
        lines.append(f"\nRun\n  llama-cli -m {shlex.quote(str(done.file))}")
    return "\n".join(lines)


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]  # in bytes along the last dimension
    kind: str  # of gguf.GGMLQuantizationType
    make: Callable[[], Tensor]  # its bytes


def export_gguf(source: str, out: Path, *, overwrite: bool = False, trust_remote_code: bool = False) -> ExportedGguf:
    """The file `out` with the weights of a packed checkpoint, all of it or none.

    One tensor is in memory at a time.

    Args:
        source: a folder that `qllm-hf quantize` or `save_pretrained` wrote.

    Raises:
        MissingExtraError: gguf is not installed.
        CheckpointError: files are missing, damaged or half written, the model is a float one, or `out` exists.
        ModelError: an architecture, a weight or a scale that GGUF cannot hold as it is.
    """
    gguf = _library()
    out = out.expanduser().absolute()
    if out.suffix != ".gguf" or out.is_dir():
        raise CheckpointError(f"{str(out)!r}: give a file that ends in .gguf.")
    if out.exists() and not overwrite:
        raise CheckpointError(f"{str(out)!r} exists. Give another file, or --overwrite to replace it.")
    with (
        holding(beside(out), out, WAIT),
        open_stored(source, trust_remote_code=trust_remote_code) as stored,
    ):
        config = stored.checkpoint.config
        named = f"{stored.folder / 'config.json'} says what no GGUF file can be made of"
        with refusing(named):
            architecture, paired = _architecture(config)
            names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
        tensors = list(_tensors(stored, names, paired))
        with whole_file(out) as partial, unchanged(stored.folder):
            writer = gguf.GGUFWriter(partial, architecture)
            with refusing(named):
                _describe(writer, config, stored.folder.resolve().name)
            with refusing(f"{stored.folder / 'tokenizer.json'} is no tokenizer that can be written as GGUF"):
                vocabulary = write_vocabulary(writer, stored.folder, config["vocab_size"], config)
            _write(gguf, writer, tensors)
    kinds = [tensor.kind for tensor in tensors]
    return ExportedGguf(out, {kind: kinds.count(kind) for kind in sorted(set(kinds))}, vocabulary, out.stat().st_size)


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("writing GGUF needs gguf: pip install 'qllm-hf[gguf]'") from None
    return gguf


def _architecture(config: dict[str, Any]) -> tuple[str, bool]:
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise ModelError(f"model_type {model_type!r} is not exported to GGUF: known are {', '.join(ARCHITECTURES)}.")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ModelError(f"rope_type {kind!r} is not exported to GGUF, which has factors of its own for it.")
    window = config.get("sliding_window")
    if window and config.get("use_sliding_window", True) and window < config["max_position_embeddings"]:
        raise ModelError(
            f"attention in a window of {window} tokens is not exported to GGUF: llama.cpp would ignore it."
        )
    return ARCHITECTURES[model_type]


def _describe(writer: Any, config: dict[str, Any], name: str) -> None:
    """The numbers that llama.cpp builds the model from."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10000.0))))
    writer.add_vocab_size(config["vocab_size"])


def _tensors(stored: StoredModel, names: Any, paired: bool) -> Iterator[_Tensor]:
    config = stored.checkpoint.config
    for name in stored.others:
        found = stored.checkpoint.tensors[name]
        shape = found.shape
        kind = "F32" if len(shape) == 1 else found.dtype
        size = {"F32": 4, "F16": 2, "BF16": 2}.get(kind)
        if size is None:
            raise ModelError(f"{name} is stored as {found.dtype}, which is no float that GGUF has.")

        def plain(name: str = name, kind: str = kind) -> Tensor:
            tensor = _in_pairs(stored.tensor(name), name, config) if paired else stored.tensor(name)
            tensor = tensor.float() if kind == "F32" else tensor
            return tensor.contiguous().view(torch.uint8)

        yield _Tensor(_name(names, name), (*shape[:-1], shape[-1] * size), kind, plain)
    for weight in stored.weights:
        block = _block(weight)
        *_, rows, columns = weight.entry.shape

        def packed(weight: StoredWeight = weight, block: Block = block) -> Tensor:
            return _encoded(stored, weight, block, config if paired else None)

        yield _Tensor(_name(names, weight.base), (rows, columns // BLOCK * block.nbytes), block.name, packed)


def _name(names: Any, stored: str) -> str:
    found: str | None = names.get_name(stored, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ModelError(f"{stored}: llama.cpp has no tensor for it in this architecture.")
    return found


def _block(weight: StoredWeight) -> Block:
    entry = weight.entry
    assert entry.weight is not None
    beside = "an input scale" if entry.input_scale else "an order of inputs" if entry.input_order else ""
    if entry.kind != "linear" or beside:
        raise ModelError(f"{entry.module}: {beside or entry.kind} is not exported to GGUF.")
    columns, size = entry.shape[-1], entry.weight.group_size
    if columns % BLOCK or (size not in (PER_ROW, PER_TENSOR) and size % BLOCK):
        raise ModelError(
            f"{entry.name}: rows of {columns} in groups of {size} cannot be cut into blocks of {BLOCK}, as GGUF has. "
            f"Quantize with groups of a multiple of {BLOCK}, and keep layers with other rows in floating point: "
            f"--keep '{entry.module}'."
        )
    block = block_for(entry.weight.bits, symmetric=entry.weight.symmetric)
    if block is None:
        raise ModelError(
            f"{entry.name}: 8 bits with zero points do not fit into a signed byte. Quantize with --w-symmetric."
        )
    return block


def _encoded(stored: StoredModel, weight: StoredWeight, block: Block, config: dict[str, Any] | None) -> Tensor:
    """The bytes of a weight."""
    packed = stored.packed(weight)
    spec, columns = packed.spec, packed.length
    groups = columns if spec.group_size <= 0 else spec.group_size
    scale = packed.scale.to(torch.float16)
    if not scale.to(packed.scale.dtype).equal(packed.scale):
        raise ModelError(
            f"{weight.base}: its scales are {packed.scale.dtype} and lie beyond what float16, the dtype of scales in "
            "GGUF, holds exactly. Quantize with --dtype float16."
        )
    rows = packed.codes().shape[0]
    middle = torch.full_like(packed.scale, 2 ** (spec.bits - 1), dtype=torch.uint8)
    zero = middle if packed.zero_point is None else packed.zero_point
    zero, scale = (_per_column(part.expand(rows, -1), groups, columns) for part in (zero, scale))
    steps = packed.codes().to(torch.int16) - zero.to(torch.int16)
    scale = scale[:, ::BLOCK]
    if config is not None:
        steps, scale = (_in_pairs(part, weight.base, config) for part in (steps, scale))
    return encode_blocks(steps, scale, block)


def _per_column(values: Tensor, size: int, columns: int) -> Tensor:
    """[O, G] -> [O, I]: each group's value for each of its columns."""
    return values.repeat_interleave(size, 1)[:, :columns]


def _in_pairs(tensor: Tensor, name: str, config: dict[str, Any]) -> Tensor:
    """The rows of queries and keys so that those which rotate together stand together, as llama.cpp's `llama` has them.

    Source: llama.cpp `convert_hf_to_gguf.py`, `LlamaModel.permute`.
    """
    layer = name.split(".")[-2]
    if layer not in PAIRED:
        return tensor
    heads = config["num_attention_heads"]
    count = heads if layer == "q_proj" else config.get("num_key_value_heads") or heads
    turned: Tensor = tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
    return turned


def _write(gguf: Any, writer: Any, tensors: list[_Tensor]) -> None:
    import numpy as np

    for tensor in tensors:
        nbytes = 1
        for size in tensor.shape:
            nbytes *= size
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.uint8), nbytes, gguf.GGMLQuantizationType[tensor.kind]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.make().numpy())
    writer.close()
