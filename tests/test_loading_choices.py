"""What from_pretrained and quantize_ quantize and keep, and what they refuse."""

import json

import pytest
import torch
from checkpoints import W4KV8, float_checkpoints, load, logits, packed_checkpoints
from safetensors.torch import load_file
from tiny_models import MODELS, float_model, on_one_thread, prompt
from transformers import LlamaConfig, LlamaForCausalLM

from qllm_hf import CheckpointError, ModelError, QllmConfig, QllmWarning, quantize_
from qllm_hf.cache import describe_cache
from qllm_hf.nn import PackedLinear
from qllm_hf.scheme import Spec
from qllm_hf.uniform import fake_quantize

pytestmark = pytest.mark.oldest
_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)
floats = pytest.fixture(scope="module")(float_checkpoints)
packed = pytest.fixture(scope="module")(packed_checkpoints)


@pytest.fixture
def llama(floats, tmp_path):
    """A float checkpoint of one's own, in one file, to spoil."""
    float_model("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_keep_and_override(floats):
    """Some layers in float, some in more bits, the first pattern that fits."""
    patterns = {"*.down_proj": "W8", "model.layers.1.*": "W3g16"}
    config = QllmConfig(w=4, w_group_size=32, modules_to_not_convert=["k_proj"], overrides=patterns)
    model, plain = load(floats / "llama", config), dict(float_model("llama").named_modules())
    seen = set()
    for name, module in model.named_modules():
        if name not in plain or not isinstance(plain[name], torch.nn.Linear) or name == "lm_head":
            continue
        if name.endswith("k_proj"):
            assert type(module) is torch.nn.Linear
            continue
        spec = Spec(4, 32)
        if name.endswith("down_proj"):
            spec = Spec(8, 32)
        elif ".1." in name:
            spec = Spec(3, 16)
        seen.add(spec)
        assert isinstance(module, PackedLinear)
        assert torch.equal(module.weight, fake_quantize(plain[name].weight.data, spec)), name
    assert len(seen) == 3
    entry = next(entry for entry in model.hf_quantizer.plan.kept() if entry.module.endswith("k_proj"))
    assert entry.reason
    assert model.hf_quantizer.plan.coverage() < 1


def test_patterns_survive_saving(floats, tmp_path):
    config = QllmConfig(w=4, w_group_size=32, modules_to_not_convert=["k_proj"], overrides={"*.down_proj": "W8"})
    model = load(floats / "llama", config)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_not_convert": ["*.dwn_proj"]},
        {"overrides": {"*.dwn_proj": "W8"}},
        {"modules_to_not_convert": ["down_proj", "model.layer.0"]},
    ],
    ids=str,
)
def test_patterns_that_mean_nothing_are_refused(floats, options):
    with pytest.raises(ModelError, match=r"no linear layer.*(down_proj|Layers are called)"):
        load(floats / "llama", QllmConfig(w=4, w_group_size=32, **options))
    with pytest.raises(ModelError, match="no linear layer"):
        quantize_(float_model("llama"), QllmConfig(w=4, w_group_size=32, **options))


def test_low_coverage_is_said(floats):
    config = QllmConfig(w=4, w_group_size=32, modules_to_not_convert=["mlp"])
    with pytest.warns(QllmWarning, match=r"only \d\d\.\d%.*mlp\.(gate|up|down)_proj"):
        load(floats / "llama", config)
    with pytest.warns(QllmWarning, match="only"):
        quantize_(float_model("llama"), config)


class ChatGLMConfig(LlamaConfig):
    model_type = "chatglm"


class ChatGLMForCausalLM(LlamaForCausalLM):
    config_class = ChatGLMConfig


def test_chatglm_is_refused_with_a_way_out(tmp_path):
    """Before its own code runs, which may fail with something that helps nobody."""
    config = ChatGLMConfig(**MODELS["llama"].options)
    ChatGLMForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="glm4"):
        ChatGLMForCausalLM.from_pretrained(tmp_path, quantization_config=QllmConfig(**W4KV8))


def test_what_cannot_be_done_twice(floats):
    model = load(floats / "llama", QllmConfig(**W4KV8))
    with pytest.raises(ModelError, match="already quantized"):
        quantize_(model, "W4")
    assert torch.equal(logits(model), logits(load(floats / "llama", QllmConfig(**W4KV8))))


@torch.no_grad()
def test_dequantized_model_is_ordinary(packed, floats, tmp_path):
    """In its modules, its cache, its files, and what can be done with it."""
    model = load(packed / "mixtral").dequantize()
    assert not any("qllm" in type(module).__module__ for module in model.modules())
    cache = model(prompt("mixtral"), use_cache=True).past_key_values
    assert describe_cache(cache)["float"] == len(cache.layers)
    assert getattr(model, "hf_quantizer", None) is None
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    before, after = (
        {key for file in folder.glob("*.safetensors") for key in load_file(file)}
        for folder in (floats / "mixtral", tmp_path)
    )
    assert after == before, "the experts of a file are stored one by one"
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(load(tmp_path), "mixtral"), logits(model, "mixtral"))
    quantize_(model, "W4", w_group_size=32)  # and can be quantized again
