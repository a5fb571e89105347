"""Wrong input of every kind, and the message that a user reads.

Each case says what is done wrong, which error comes, and phrases that its message must hold: what was
given, what is allowed, what to do. `python tests/test_bad_inputs.py` prints all messages.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import float_model
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import CacheLayerMixin

import qllm_hf
from qllm_hf import QllmCache, QllmConfig, Scheme, quantize_
from qllm_hf.cache import quantize_cache_
from qllm_hf.compat import SELF_QUANTIZING_LAYERS
from qllm_hf.errors import CacheError, CheckpointError, ConfigError, ModelError, QllmError, SchemeError
from qllm_hf.kv_rows import KvFormat
from qllm_hf.ops import prefer
from qllm_hf.packing import pack, unpack
from qllm_hf.scheme import Spec
from qllm_hf.uniform import quantize


class Case(NamedTuple):
    what: str
    do: Callable[[Path], object]
    error: type[Exception]
    phrases: tuple[str, ...]


def llama():
    return float_model("llama")


def packed(folder: Path, scheme: str = "W4KV8") -> Path:
    """A packed checkpoint in a folder."""
    quantize_(llama(), scheme, w_group_size=32).save_pretrained(folder / "packed")
    return folder / "packed"


def load(path: Path, **options):
    return AutoModelForCausalLM.from_pretrained(path, **options)


def edit_config(path: Path, **changes) -> Path:
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"].update(changes)
    (path / "config.json").write_text(json.dumps(config))
    return path


def with_nan(model):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    return model


def without_tensor(path: Path, name: str) -> Path:
    tensors = load_file(path / "model.safetensors")
    del tensors[name]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt", "qllm_format": "1"})
    return path


def float_without(folder: Path, name: str) -> Path:
    llama().save_pretrained(folder / "float")
    return without_tensor(folder / "float", name)


def chatglm(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "chatglm", "architectures": ["ChatGLMModel"]}))
    return folder


def truncated(path: Path) -> Path:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])
    return path


def load_checked(path: Path):
    from qllm_hf.loading import load_model

    return load_model(str(path))


class SelfQuantizing(SELF_QUANTIZING_LAYERS[0]):
    """Stands for the layers of transformers' own quantized cache, without their optional backends."""

    def __init__(self):
        CacheLayerMixin.__init__(self)

    def _quantize(self, tensor, axis):
        return tensor

    def _dequantize(self, tensor):
        return tensor


def self_quantizing_cache():
    cache = DynamicCache()
    cache.layers = [SelfQuantizing()]
    return cache


def generate_with(model, cache):
    return model.generate(torch.tensor([[5, 6, 7]]), past_key_values=cache, max_new_tokens=2)


IDS = torch.tensor([[5, 6, 7]])
KV4, KV8 = KvFormat(Scheme(kv=4)), KvFormat(Scheme(kv=8))

CASES = [
    Case("scheme that is no scheme", lambda _: Scheme.parse("4bit"), SchemeError, ("'4bit'", "W4A8", "2 to 8")),
    Case("scheme in another order", lambda _: Scheme.parse("KV4W4"), SchemeError, ("'KV4W4'", "in this order")),
    Case("empty scheme", lambda _: Scheme.parse(""), SchemeError, ("''", "FP16")),
    Case("scheme that is no string", lambda _: Scheme.parse(4), SchemeError, ("int", "W4A8")),
    Case("9 bits", lambda _: Scheme.parse("W9"), SchemeError, ("'W9'", "w=9", "2, 3, 4, 5, 6, 7, 8")),
    Case("1 bit", lambda _: QllmConfig(w=1), SchemeError, ("w=1", "16 to stay")),
    Case("bits as text", lambda _: QllmConfig(w="4"), SchemeError, ("w='4'",)),
    Case("activations without weights", lambda _: QllmConfig(a=8), SchemeError, ("a=8 with w=16", "W8A8")),
    Case("group size of -2", lambda _: QllmConfig(w=4, w_group_size=-2), SchemeError, ("w_group_size=-2", "-1")),
    Case(
        "KV group over a tensor", lambda _: QllmConfig(kv=4, kv_group_size=0), SchemeError, ("kv_group_size=0", "token")
    ),
    Case(
        "symmetry that is no flag",
        lambda _: QllmConfig(w=4, w_symmetric="yes"),
        SchemeError,
        ("'yes'", "True or False"),
    ),
    Case(
        "misspelt key", lambda _: QllmConfig(w=4, kv_group_sise=32), ConfigError, ("'kv_group_sise'", "'kv_group_size'")
    ),
    Case("another library's key", lambda _: QllmConfig(kv_bits=4), ConfigError, ("'kv_bits'", "Did you mean 'kv'")),
    Case("bitsandbytes' key", lambda _: QllmConfig(load_in_4bit=True), ConfigError, ("'load_in_4bit'", "'w'")),
    Case("unknown method", lambda _: QllmConfig(w=4, method="rtm"), ConfigError, ("'rtm'", "'rtn'")),
    Case(
        "pattern instead of a list",
        lambda _: QllmConfig(w=4, modules_to_not_convert="lm_head"),
        ConfigError,
        ("'lm_head'", "list"),
    ),
    Case(
        "override that is no mapping", lambda _: QllmConfig(w=4, overrides=["W8"]), ConfigError, ("['W8']", "mapping")
    ),
    Case(
        "override with KV bits",
        lambda _: QllmConfig(w=4, overrides={"*.down_proj": "W8KV4"}),
        ConfigError,
        ("'*.down_proj'", "whole model"),
    ),
    Case(
        "override that is no scheme", lambda _: QllmConfig(w=4, overrides={"*.down_proj": "8"}), SchemeError, ("'8'",)
    ),
    Case("another quant_method", lambda _: QllmConfig(quant_method="gptq"), ConfigError, ("'gptq'", "'qllm'")),
    Case(
        "integers to quantize", lambda _: quantize(torch.arange(8), Spec(4)), SchemeError, ("int64", "floating-point")
    ),
    Case(
        "group that does not divide, paper_exact",
        lambda _: quantize_(llama(), "W4", w_group_size=48, paper_exact=True),
        ModelError,
        ("layers.0", "48", "32", "64", "modules_to_not_convert"),
    ),
    Case("codes of another type to pack", lambda _: pack(torch.zeros(8), 4), SchemeError, ("uint8", "float32")),
    Case(
        "too few words to unpack",
        lambda _: unpack(torch.zeros(3, dtype=torch.int16), 4, 128),
        CheckpointError,
        ("32 int16 words", "got 3"),
    ),
    Case(
        "pattern that means no module",
        lambda _: quantize_(llama(), "W4", modules_to_not_convert=["*.down_prj"]),
        ModelError,
        ("'*.down_prj'", "'down_proj'", "q_proj"),
    ),
    Case(
        "override that means no module",
        lambda _: quantize_(llama(), "W4", overrides={"layers.9": "W8"}),
        ModelError,
        ("'layers.9'", "full path"),
    ),
    Case(
        "model that is quantized already",
        lambda _: quantize_(quantize_(llama(), "W4"), "W3"),
        ModelError,
        ("already quantized", "dequantize()"),
    ),
    Case(
        "something that is no model",
        lambda _: quantize_(torch.nn.Linear(4, 4), "W4"),
        ModelError,
        ("Linear", "transformers model"),
    ),
    Case(
        "options beside a config", lambda _: quantize_(llama(), QllmConfig(w=4), kv=4), ModelError, ("kv", "QllmConfig")
    ),
    Case(
        "weights with NaN, in memory",
        lambda _: quantize_(with_nan(llama()), "W4"),
        ModelError,
        ("layers.1.mlp.up_proj.weight", "NaN"),
    ),
    Case(
        "writing to a packed weight",
        lambda _: quantize_(llama(), "W4").model.layers[0].mlp.up_proj.weight.add_(1),
        ModelError,
        ("read-only", "dequantize()"),
    ),
    Case(
        "assigning a packed weight",
        lambda _: setattr(quantize_(llama(), "W4").model.layers[0].mlp.up_proj, "weight", 0),
        ModelError,
        ("read-only",),
    ),
    Case(
        "unknown implementation", lambda _: prefer("cuda").__enter__(), ConfigError, ("'cuda'", "integer, dequantize")
    ),
    Case(
        "other weights for a packed checkpoint",
        lambda p: load(packed(p), quantization_config=QllmConfig(w=3)),
        ConfigError,
        ("w=3", "w=4", "quantize the float model"),
    ),
    Case(
        "checkpoint of a newer format",
        lambda p: load(edit_config(packed(p), format=7)),
        CheckpointError,
        ("format 7", "pip install --upgrade"),
    ),
    Case(
        "checkpoint with a damaged format",
        lambda p: load(edit_config(packed(p), format="x")),
        CheckpointError,
        ("'x'", "damaged"),
    ),
    Case(
        "checkpoint with an unknown key",
        lambda p: load(edit_config(packed(p), w_gruop_size=64)),
        ConfigError,
        ("'w_gruop_size'", "'w_group_size'"),
    ),
    Case("checkpoint cut short", lambda p: load_checked(truncated(packed(p))), CheckpointError, ("model.safetensors",)),
    Case(
        "checkpoint without a packed tensor, plain from_pretrained",
        lambda p: load(without_tensor(packed(p), "model.layers.0.mlp.up_proj.weight_scale")),
        CheckpointError,
        ("1 packed tensors", "model.layers.0.mlp.up_proj.weight_scale", "incomplete"),
    ),
    Case(
        "float checkpoint without a weight",
        lambda p: load(float_without(p, "model.layers.1.mlp.up_proj.weight"), quantization_config=QllmConfig(w=4)),
        CheckpointError,
        ("model.layers.1.mlp.up_proj.weight_packed",),
    ),
    Case(
        "checkpoint without a packed tensor",
        lambda p: load_checked(without_tensor(packed(p), "model.layers.0.mlp.up_proj.weight_scale")),
        CheckpointError,
        ("model.layers.0.mlp.up_proj.weight_scale",),
    ),
    Case("folder that is not there", lambda p: load_checked(p / "nowhere"), CheckpointError, ("nowhere",)),
    Case("ChatGLM with code of its own", lambda p: load_checked(chatglm(p)), CheckpointError, ("ChatGLM", "glm4")),
    Case(
        "cache of another KV format",
        lambda _: generate_with(quantize_(llama(), "KV4"), quantize_cache_(DynamicCache(), KV8)),
        CacheError,
        ("KV8", "KV4", "fresh cache"),
    ),
    Case(
        "cache that quantizes on its own",
        lambda _: quantize_cache_(self_quantizing_cache(), KV4),
        CacheError,
        ("SelfQuantizing", "cache_implementation"),
    ),
    Case("tuple as a cache", lambda _: quantize_cache_(((IDS, IDS),), KV4), CacheError, ("tuple", "DynamicCache")),
    Case("QllmCache without KV bits", lambda _: QllmCache(llama().config, "W4"), CacheError, ("W4", "KV8")),
    Case(
        "QllmCache for a model without keys",
        lambda _: QllmCache(float_model("mamba").config, "KV4"),
        CacheError,
        ("mamba", "no keys"),
    ),
    Case(
        "assigning keys of a packed layer",
        lambda _: setattr(QllmCache(llama().config, "KV4").layers[0], "keys", torch.zeros(1)),
        CacheError,
        ("cannot be assigned", "crop"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
def test_message(case: Case, tmp_path: Path) -> None:
    with pytest.raises(case.error) as caught:
        case.do(tmp_path)
    message = str(caught.value)
    missing = [phrase for phrase in case.phrases if phrase not in message]
    assert not missing, f"{missing} not in: {message}"
    assert isinstance(caught.value, QllmError)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 30


def test_good_input_is_not_refused(tmp_path: Path) -> None:
    """The negative control: what the cases build on works as long as nothing is wrong with it."""
    model = load(packed(tmp_path))
    assert model.generate(IDS, max_new_tokens=2, do_sample=False).shape == (1, 5)
    assert load_checked(tmp_path / "packed") is not None
    quantize_cache_(quantize_cache_(DynamicCache(), KV4), KV4)
    QllmCache(llama().config, "KV4")
    assert qllm_hf.QllmConfig(w=4, overrides={"*.down_proj": "W8"}).overrides == {"*.down_proj": "W8"}


if __name__ == "__main__":
    for number, example in enumerate(CASES, 1):
        with tempfile.TemporaryDirectory() as folder:
            try:
                example.do(Path(folder))
            except QllmError as error:
                print(f"{number:2}. {example.what}\n    {type(error).__name__}: {error}")
            else:
                sys.exit(f"{example.what}: no error")
