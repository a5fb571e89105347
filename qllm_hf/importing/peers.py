"""Which library wrote a checkpoint, and what its config says: everything that has to be known besides the tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint import read_object
from ..config import QUANT_METHOD
from ..errors import CheckpointError
from ..shown import short, short_text
from .layouts import AWQ_GEMM, INT_QUANTIZED, PACK_QUANTIZED, Layout, Stated, gptq_layout

# Where libraries wrote their config before it had a place in config.json.
OWN_FILES = ("quantize_config.json", "quant_config.json")
IMPORTED = ("awq", "gptq", "auto-round", "compressed-tensors")
# Programs that are known to subtract 1 from whole words of zero points.
SUBTRACT_FROM_WORDS = ("gptqmodel", "auto-round")

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """How a layer's input is quantized by the checkpoint's library; `per_token` as it comes, not fixed beforehand."""

    bits: int
    symmetric: bool
    per_token: bool
    is_integer: bool


@dataclass(frozen=True)
class Peer:
    """What a checkpoint's config says.

    Attributes:
        method: its `quant_method`.
        made_by: the program that chose the codes, with its version where that is known.
        layouts: how its layers may be stored.
        stated: (name of a layer in the files) -> bits and group sizes.
        inputs: (name of a layer in the files) -> how its input is quantized, or None.
        quantizes_cache: keys and values too.
    """

    method: str
    made_by: str
    layouts: tuple[Layout, ...]
    stated: Callable[[str], Stated]
    inputs: Callable[[str], Inputs | None] = field(default=lambda name: None)
    quantizes_cache: bool = False


def read_peer(folder: Path, config: Config) -> Peer:
    """What the config of a checkpoint says of its quantized layers.

    Raises:
        CheckpointError: it is a float model, ours, or of a library or layout that holds no uniform integers.
    """
    quantization = _quantization(folder, config)
    method = str(quantization.get("quant_method", "")).replace("_", "-")
    if method == QUANT_METHOD:
        raise CheckpointError(f"{str(folder)!r} is a checkpoint of qllm_hf already: load it as it is.")
    readers: dict[str, Callable[[Config], Peer]] = {
        "awq": _read_awq,
        "gptq": _read_gptq,
        "auto-round": _read_auto_round,
        "compressed-tensors": _read_compressed_tensors,
    }
    if method not in readers:
        raise CheckpointError(
            f"{str(folder)!r} is quantized by {short(method)}. Imported are {', '.join(IMPORTED)}, whose codes are "
            "integers with one scale for each group; other libraries store other numbers. Quantize the float model it "
            "came from."
        )
    try:
        return _told(folder, readers[method](quantization))
    except _Refused as refused:
        raise CheckpointError(f"{str(folder)!r} ({method}) cannot be imported without loss: {refused}.") from None
    except _UNEXPECTED as error:
        raise CheckpointError(_damaged(folder, error)) from None


def _told(folder: Path, peer: Peer) -> Peer:
    """The same, with what it says of single layers refused where a value makes no sense."""

    def told(ask: Callable[[str], Any]) -> Callable[[str], Any]:
        def answer(name: str) -> Any:
            try:
                return ask(name)
            except _UNEXPECTED as error:
                raise CheckpointError(_damaged(folder, error)) from None

        return answer

    return replace(peer, stated=told(peer.stated), inputs=told(peer.inputs))


_UNEXPECTED = (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, re.error)


def _damaged(folder: Path, error: Exception) -> str:
    said = short_text(f"{type(error).__name__}: {error}")
    return f"quantization_config in {folder / 'config.json'} is damaged ({said}). Copy the checkpoint again."


class _Refused(Exception):
    """A config that says that the layers hold something else than uniform integers."""


def _quantization(folder: Path, config: Config) -> Config:
    found = config.get("quantization_config") or config.get("compression_config")
    if found:
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{folder / 'config.json'}: quantization_config is {short(found)}, no object.")
        return dict(found)
    for name in OWN_FILES:
        if (folder / name).is_file():
            stored = read_object(folder / name)
            return {"quant_method": "awq" if "w_bit" in stored else "gptq", **stored}
    raise CheckpointError(
        f"{str(folder)!r} is a float model: its config.json has no quantization_config. "
        f"Quantize it: qllm-hf quantize {folder} --scheme W4 -o DIR"
    )


def _read_awq(config: Config) -> Peer:
    version = str(config.get("version", config.get("format", "gemm"))).lower()
    if version != "gemm":
        raise _Refused(f"its layout is {version!r}, and only 'gemm' is known")
    bits, size = config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size"))
    return Peer("awq", _program(config, "AutoAWQ"), (AWQ_GEMM,), _same(bits, [size]))


def _read_gptq(config: Config) -> Peer:
    form = str(config.get("checkpoint_format", config.get("format", "gptq"))).lower()
    if form not in ("gptq", "gptq_v2"):
        raise _Refused(f"its layout is {form!r}, and only 'gptq' and 'gptq_v2' are known")
    program = _program(config, "AutoGPTQ")
    layout = gptq_layout(less_one=form == "gptq", trusts_borrow=program.startswith(SUBTRACT_FROM_WORDS))
    return Peer("gptq", program, (layout,), _same(config.get("bits"), _group_sizes(config, "dynamic")))


def _read_auto_round(config: Config) -> Peer:
    if str(config.get("data_type", "int")) != "int" or int(config.get("act_bits") or 16) < 16:
        raise _Refused(
            f"data_type={config.get('data_type')!r} with act_bits={config.get('act_bits')!r}: only integer weights "
            "with inputs in floating point are known"
        )
    packing = str(config.get("packing_format", "auto_round:auto_gptq")).removeprefix("auto_round").strip(":")
    packing = {"": "gptqmodel", "gptq": "auto_gptq", "awq": "auto_awq"}.get(packing, packing)
    layouts = {
        "auto_gptq": gptq_layout(less_one=True, trusts_borrow=True),
        "gptqmodel": gptq_layout(less_one=False, trusts_borrow=True),
        "auto_awq": AWQ_GEMM,
    }
    if packing not in layouts:
        raise _Refused(f"packing_format={config['packing_format']!r}: known are auto_gptq, auto_awq and auto_round")
    stated = _same(config.get("bits"), _group_sizes(config, "extra_config"))
    return Peer("auto-round", _program(config, "auto-round"), (layouts[packing],), stated)


def _read_compressed_tensors(config: Config) -> Peer:
    for key in ("sparsity_config", "transform_config"):
        if config.get(key):
            raise _Refused(f"it has a {key}, which changes what its weights mean")
    groups = list((config.get("config_groups") or {}).values())
    for group in groups:
        if not isinstance(group, Mapping):
            raise _Refused(f"its config_groups name a preset, {short(group)}, and not what it stands for")
        for target in group["targets"]:
            _check_pattern(target)
        weights = group.get("weights") or {}
        if weights.get("type", "int") != "int" or weights.get("strategy") in ("block", "tensor_group", "attn_head"):
            raise _Refused(
                f"{short(group.get('format') or config.get('format'))}: weights of type {weights.get('type')!r} with "
                f"strategy {weights.get('strategy')!r}. Known are integers with one scale for a group, a channel or a "
                "tensor"
            )

    def group_of(name: str) -> Config:
        return next((group for rank in (0, 1, 2) for group in groups if rank in _ranks(name, group["targets"])), {})

    def stated(name: str) -> Stated:
        weights = group_of(name).get("weights") or {}
        size = _whole(weights.get("group_size"), "group_size")
        return Stated(_whole(weights.get("num_bits"), "num_bits"), (size,) if size else ())

    def inputs(name: str) -> Inputs | None:
        found = group_of(name).get("input_activations")
        if not found:
            return None
        per_token = found.get("strategy") == "token" and found.get("dynamic") is True
        return Inputs(
            _whole(found["num_bits"], "num_bits") or 0,
            bool(found["symmetric"]),
            per_token,
            found.get("type", "int") == "int",
        )

    made_by = f"compressed-tensors {config['version']}" if config.get("version") else "compressed-tensors"
    has_cache = bool(config.get("kv_cache_scheme"))
    return Peer("compressed-tensors", made_by, (PACK_QUANTIZED, INT_QUANTIZED), stated, inputs, has_cache)


def _ranks(name: str, targets: list[str]) -> set[int]:
    """How closely targets of a config group mean a layer: 0 by its name, 1 by a regular expression, 2 by its class."""
    found = {0} if name in targets else set()
    found |= {1 for target in targets if target.startswith("re:") and re.match(target.removeprefix("re:"), name)}
    return found | {2} if "Linear" in targets else found


def _check_pattern(target: str) -> None:
    """Raises _Refused if a pattern could take for ever: Python's regular expressions try all ways there are.

    Names of modules have about a hundred characters, so a handful of repetitions is quick, and one within another is
    not. Patterns that programs write have up to three.
    """
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", target)
    if len(target) > 500 or len(re.findall(r"[*+{]", plain)) > 5 or re.search(r"\)[*+{]", plain):
        raise _Refused(f"a config group is for layers like {short(target)}, a pattern that could take for ever to try")


def _whole(value: Any, name: str) -> int | None:
    if value is not None and type(value) is not int:
        raise ValueError(f"{name}={short(value)}")
    return value


def _same(bits: Any, sizes: list[Any]) -> Callable[[str], Stated]:
    stated = Stated(_whole(bits, "bits"), tuple(size for size in sizes if type(size) is int))
    return lambda name: stated


def _group_sizes(config: Config, exceptions: str) -> list[Any]:
    """The group size of most layers, and those of layers that a table of exceptions names."""
    others = [(value or {}).get("group_size") for value in (config.get(exceptions) or {}).values()]
    return [config.get("group_size"), *others]


def _program(config: Config, default: str) -> str:
    """Such as "gptqmodel 7.6.0"."""
    if config.get("provider") == "auto-round" or config.get("autoround_version"):
        return f"auto-round {config.get('autoround_version', '')}".strip()
    quantizer = (config.get("meta") or {}).get("quantizer") or []
    named = [quantizer] if isinstance(quantizer, str) else list(quantizer)
    return str(named[-1]).replace(":", " ") if named else default
