"""Methods keep more of a trained model than rounding to nearest, and what they make is an ordinary packed model."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from tiny_models import MODELS, float_model, on_one_thread, prompt
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from qllm_hf import QllmConfig, quantize_
from qllm_hf.errors import ConfigError, QllmWarning
from qllm_hf.loading import load_model, save_model
from qllm_hf.method import METHODS, options_of, rounding_of, scaling_of
from qllm_hf.methods.calibration import Calibration, token_blocks
from qllm_hf.nn import PackedLinear, PackedModule
from qllm_hf.streamed import quantize_streamed

_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)
CALIBRATED = [method for method in METHODS if method != "rtn"]
methods = pytest.mark.parametrize("method", CALIBRATED)
# RWKV and GPT-OSS: tests/methods/test_resume.py looks at what is said
pytestmark = pytest.mark.filterwarnings("ignore:.*rounded without a scale:qllm_hf.errors.QllmWarning")
TINY = ("opt", "falcon", "mixtral", "gemma3_text", "mamba", "rwkv", "deepseek_v3", "gptj", "falcon_h1", "gpt_oss")


@pytest.fixture(scope="module")
def texts(shared) -> list[str]:
    with (shared / "data" / "calibration" / "tinystories_calib.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def calibration(stories, texts) -> Tensor:
    return token_blocks(texts, AutoTokenizer.from_pretrained(stories), samples=24, seqlen=256)


@pytest.fixture(scope="module")
def test_ids(stories, tinystories_text) -> Tensor:
    return token_blocks(tinystories_text, AutoTokenizer.from_pretrained(stories), samples=24, seqlen=512)


def trained(stories: Path, scheme: str = "W3g64", **options):
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    return quantize_(model, scheme, **options) if scheme != "FP16" else model


def few_quantized(stories: Path, *args, **options):
    with pytest.warns(QllmWarning, match="of the linear weights are quantized"):
        return trained(stories, *args, **options)


@torch.no_grad()
def losses(model, ids: Tensor) -> Tensor:
    """Of each block, in nats per token."""
    logits = model(ids, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def errors_apart(a: Tensor, b: Tensor) -> float:
    """How many paired standard errors a lies below b."""
    difference = b - a
    return float(difference.mean() / (difference.std() / len(difference) ** 0.5))


def tensors(model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@torch.no_grad()
def logits(model, ids: Tensor) -> Tensor:
    return model(ids, use_cache=False).logits


# What they are good for


def test_methods_lose_less_of_a_trained_model(stories, calibration, test_ids):
    plain = losses(trained(stories), test_ids)
    exact = losses(trained(stories, "FP16"), test_ids)
    found = {
        method: losses(trained(stories, method=method, calibration=calibration), test_ids)
        for method in ("awq", "gptq", "awq+gptq")
    }
    assert errors_apart(exact, plain) > 10
    for method, loss in found.items():
        assert errors_apart(loss, plain) > 5, method
        assert loss.mean() > exact.mean()
    assert errors_apart(found["gptq"], found["awq"]) > 2
    assert abs(errors_apart(plain, plain + 0.1 * torch.randn(24))) < 5, "noise alone is no difference"


def test_text_of_another_kind_helps_less(stories, calibration, test_ids):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(3, 512, calibration.shape, generator=generator)
    wrong, right = (
        losses(trained(stories, method="gptq", calibration=ids[:12]), test_ids[:16]) for ids in (noise, calibration)
    )
    assert errors_apart(right, wrong) > 5


def test_smoothquant_keeps_8_bits_close_to_the_float_model(stories, calibration, test_ids):
    ids = test_ids[:8]
    exact = losses(trained(stories, "FP16"), ids)
    for options in (None, {"alpha": "auto"}):
        model = trained(stories, "W8A8", method="smoothquant", calibration=calibration[:8], method_options=options)
        assert (losses(model, ids) - exact).mean().abs() < 0.02
    assert (losses(trained(stories, "W3A3"), ids) - exact).mean() > 0.1


def test_gptq_helps_4_bit_activations_too(stories, calibration, test_ids):
    plain = losses(trained(stories, "W4A4"), test_ids[:16])
    model = trained(stories, "W4A4", method="smoothquant+gptq", calibration=calibration[:8])
    assert errors_apart(losses(model, test_ids[:16]), plain) > 3


# What they make


@methods
def test_a_model_is_the_same_after_saving_it(stories, calibration, tmp_path, method):
    model = trained(stories, "W3A8KV4", method=method, calibration=calibration[:2])
    saved = save_model(model, None, tmp_path / "model")
    again = load_model(str(saved))
    ids = calibration[5:7, :64]
    assert torch.equal(logits(again, ids), logits(model, ids))
    assert same(tensors(again), tensors(model))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(ids[:1, :8], **options), model.generate(ids[:1, :8], **options))
    rounded = trained(stories, "W3A8KV4")
    assert not torch.equal(logits(rounded, ids), logits(model, ids))
    config = json.loads((saved / "config.json").read_text())["quantization_config"]
    assert config["method"] == method
    assert config["calibration"] == Calibration(calibration[:2], "token ids").summary()
    assert again.hf_quantizer.quantization_config.to_dict() == model.hf_quantizer.quantization_config.to_dict()


def test_config_json_holds_no_text(stories, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    options = {"method": "gptq", "calibration": texts, "samples": 2, "seqlen": 64, "tokenizer": tokenizer}
    saved = save_model(trained(stories, **options), None, tmp_path / "model")
    written = (saved / "config.json").read_text()
    assert '"source": "texts"' in written
    assert not any(text[:40] in written for text in texts)


@pytest.mark.parametrize("method", ["gptq", "smoothquant", "awq+gptq"])
def test_from_pretrained_makes_what_quantize_makes(stories, texts, method):
    def config() -> QllmConfig:
        return QllmConfig(w=3, method=method, calibration=texts, samples=4, seqlen=128)

    loaded = AutoModelForCausalLM.from_pretrained(stories, quantization_config=config())
    made = quantize_(AutoModelForCausalLM.from_pretrained(stories, dtype="auto"), config())
    assert same(tensors(loaded), tensors(made))
    assert loaded.hf_quantizer.quantization_config.to_dict() == made.hf_quantizer.quantization_config.to_dict()


@pytest.mark.parametrize("method", ["awq+gptq", "smoothquant"])
def test_two_runs_give_the_same_codes(stories, calibration, method):
    first, second = (tensors(trained(stories, method=method, calibration=calibration[:1])) for _ in range(2))
    assert same(first, second)
    assert not same(first, tensors(trained(stories, method=method, calibration=calibration[1:2])))


def tiny_calibration(name: str) -> Calibration:
    return Calibration(torch.cat([prompt(name, batch=8, seed=seed) for seed in range(2)]), "some ids")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(pytest.param(name, torch.bfloat16, id=f"{name}-bfloat16") for name in TINY),
        *(pytest.param(name, torch.float32, id=f"{name}-float32") for name in ("falcon", "mixtral", "mamba")),
    ],
)
def test_one_block_in_memory_at_a_time_gives_the_same_codes(name, dtype, tmp_path):
    float_model(name).to(dtype).save_pretrained(tmp_path / "float")

    def config() -> QllmConfig:
        return QllmConfig(w=3, w_group_size=32, method="awq+gptq", calibration=tiny_calibration(name))

    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "float", dtype=dtype, **MODELS[name].load)
    expected = quantize_(whole, config())
    streamed, work = quantize_streamed(str(tmp_path / "float"), config(), tiny_calibration(name), tmp_path / "work")
    assert same(tensors(streamed), tensors(expected))
    ids = prompt(name, seed=9)
    assert torch.equal(logits(streamed, ids), logits(expected, ids))
    assert work.done == len(list((tmp_path / "work").glob("block-*")))


@pytest.mark.parametrize("name", MODELS)
def test_every_family_comes_closer_to_its_float_model(name):
    """With many tokens for few weights."""
    ids = torch.cat([prompt(name, batch=8, seed=seed) for seed in range(8)])
    exact, probe = logits(float_model(name), prompt(name, seed=99)), prompt(name, seed=99)
    error = {}
    for method in ("rtn", "awq+gptq"):
        text = {} if method == "rtn" else {"calibration": ids}
        model = quantize_(float_model(name), "W3g32", method=method, **text)
        error[method] = float((logits(model, probe) - exact).square().mean())
        assert {type(module) for module in model.modules()} >= {PackedLinear}
    assert error["awq+gptq"] < error["rtn"]


# Together with other options


def test_overrides_and_kept_modules_hold(stories, calibration):
    model = few_quantized(
        stories,
        method="awq+gptq",
        calibration=calibration[:4],
        overrides={"*.down_proj": "W8", "model.layers.0.*": "W5g32"},
        modules_to_not_convert=["*.o_proj", "model.layers.4"],
    )
    for index, layer in enumerate(model.model.layers):
        for name, module in layer.named_modules():
            if not isinstance(module, torch.nn.Linear):
                continue
            kept = index == 4 or name.endswith("o_proj")
            assert isinstance(module, PackedLinear) != kept, (index, name)
            if not kept:
                codes = module.packed("weight").codes()
                bits = 8 if name.endswith("down_proj") else 5 if index == 0 else 3
                assert 2 ** (bits - 1) <= int(codes.max()) < 2**bits
                assert module.weight_specs["weight"][0].group_size == (32 if bits == 5 else 64)


def test_layers_that_stay_in_floating_point_take_part_in_scaling(stories, calibration, test_ids):
    """A norm's scale reaches all that read it, quantized or not: the float model stays what it was."""
    kept = ["*.q_proj", "*.k_proj", "*.gate_proj", "*.down_proj", "*.o_proj"]
    options = {"method": "awq", "calibration": calibration, "modules_to_not_convert": kept}
    exact, ids = logits(trained(stories, "FP16"), test_ids[:2]), test_ids[:2]
    model = few_quantized(stories, "W8", **options)
    assert (logits(model, ids) - exact).abs().mean() < 0.05
    untouched = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    q, before = model.model.layers[0].self_attn.q_proj.weight, untouched.model.layers[0].self_attn.q_proj.weight
    assert not torch.allclose(q, before)
    q.data.copy_(before)
    assert (logits(model, ids) - exact).abs().mean() > 0.1, "without its part of the scales it is another model"


def test_a_method_composes_with_a_quantized_cache(stories, calibration):
    weights = trained(stories, "W3g64", method="gptq", calibration=calibration[:4])
    both = trained(stories, "W3g64KV4", method="gptq", calibration=calibration[:4])
    assert same(tensors(weights), tensors(both)), "keys and values are exact while codes are chosen"
    assert not torch.equal(logits(weights, calibration[:1]), logits(both, calibration[:1]))


@pytest.mark.parametrize("scheme", ["W2g64", "W8", "W4g-1", "W4g0", "W3g48", "W4A8"])
def test_any_scheme_can_be_calibrated(stories, calibration, scheme):
    for method in ("awq", "gptq"):
        model = trained(stories, scheme, method=method, calibration=calibration[:1])
        assert torch.isfinite(logits(model, calibration[1:2])).all()


@pytest.mark.parametrize("options", [{"w_symmetric": True}, {"paper_exact": True}])
def test_any_arithmetic_can_be_calibrated(stories, calibration, test_ids, options):
    plain = losses(trained(stories, "W3", w_group_size=4, **options), test_ids[:8])
    for method in ("awq", "gptq"):
        model = trained(stories, "W3", w_group_size=4, method=method, calibration=calibration[:8], **options)
        assert losses(model, test_ids[:8]).mean() < plain.mean()


def test_a_layer_that_multiplies_its_input_is_saved_and_dequantized(tmp_path):
    """Behind GELU nothing else can take the scale."""
    model = quantize_(float_model("gpt2"), "W3g32", method="awq", calibration=tiny_calibration("gpt2").ids)
    scaled = [name for name, module in model.named_modules() if getattr(module, "input_scale", None) is not None]
    assert scaled == ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]
    assert model.hf_quantizer.quantization_config.input_scales == ["transformer.h.*.mlp.c_proj"]
    again = load_model(str(save_model(model, None, tmp_path / "model")))
    ids = prompt("gpt2")
    assert torch.equal(logits(again, ids), logits(model, ids))
    assert torch.allclose(logits(again.dequantize(), ids), logits(model, ids), atol=1e-4)


def test_without_weights_to_quantize_no_text_is_needed():
    model = quantize_(float_model("llama"), "KV4", method="gptq")
    assert not any(isinstance(module, PackedModule) for module in model.modules())


@pytest.mark.parametrize("name", ["mamba", "rwkv"])
def test_families_without_keys_and_values_say_so_with_a_method_too(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", QllmWarning)
        quantize_(float_model(name), "W4g32KV4", method="gptq", calibration=tiny_calibration(name).ids)
    assert any("has no keys and values" in str(warning.message) for warning in caught)


# Options


def test_a_method_has_two_steps():
    assert [(scaling_of(method), rounding_of(method)) for method in METHODS] == [
        (None, "rtn"),
        ("awq", "rtn"),
        ("smoothquant", "rtn"),
        (None, "gptq"),
        ("awq", "gptq"),
        ("smoothquant", "gptq"),
    ]


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("gtpq", None, r"method='gtpq': allowed are rtn, awq.*Did you mean 'gptq'"),
        ("gptq+awq", None, "method='gptq\\+awq': allowed are"),
        (3, None, "method=3: allowed are"),
        (None, None, "method=None: allowed are"),
        ("gptq", {"dampning": 1}, "'dampning' is no option of method 'gptq'.*'damping'.*allowed are act_order"),
        ("awq", {"damping": 0.1}, "'damping' is no option of method 'awq'.*allowed are steps, clip"),
        ("rtn", {"steps": 3}, "'steps' is no option of method 'rtn'.*it has none"),
        ("gptq", {"damping": -1}, "gptq: damping=-1: give a number from 0.0 to 10.0"),
        ("gptq", {"damping": "much"}, "gptq: damping='much'"),
        ("gptq", {"damping": float("nan")}, "gptq: damping=nan"),
        ("gptq", {"block_size": 0}, "gptq: block_size=0"),
        ("gptq", {"block_size": 1.5}, "gptq: block_size=1.5"),
        ("gptq", {"act_order": 1}, "gptq: act_order=1: give True or False"),
        ("gptq", {"correction": 1.1}, "gptq: correction=1.1: give a number from 0.0 to 1.0"),
        ("awq", {"steps": True}, "awq: steps=True"),
        ("awq+gptq", {"clip": "no"}, "awq: clip='no': give True or False"),
        ("smoothquant", {"alpha": 2}, "smoothquant: alpha=2: give a number from 0 to 1, or 'auto'"),
        ("smoothquant", {"alpha": "best"}, "smoothquant: alpha='best'"),
        ("smoothquant", {"alpha": "auto", "grid": [0.5, -1]}, "smoothquant: alpha=-1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_the_config_is_made(method, options, match):
    with pytest.raises(ConfigError, match=match):
        QllmConfig(w=4, method=method, method_options=options)


def test_options_reach_each_step_that_has_them():
    steps = options_of("awq+gptq", {"clip_least": 0.8, "damping": 0.1, "steps": 5})
    assert (steps["awq"].clip_least, steps["gptq"].clip_least) == (0.8, 0.8)
    assert (steps["awq"].steps, steps["gptq"].damping) == (5, 0.1)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gptq", {"act_order": False}),
        ("gptq", {"damping": 1.0}),
        ("gptq", {"clip": False}),
        ("gptq", {"correction": 0.0}),
        ("gptq", {"refine": False}),
        ("awq", {"steps": 1}),
        ("awq", {"clip": False}),
        ("awq", {"clip_least": 0.9}),
        ("smoothquant", {"alpha": 0.9}),
        ("smoothquant", {"alpha": "auto", "grid": [0.1]}),
    ],
)
def test_options_change_the_codes(stories, calibration, method, options):
    default, changed = (
        tensors(trained(stories, method=method, method_options=given, calibration=calibration[:1]))
        for given in (None, options)
    )
    assert not same(default, changed)


def test_options_are_stored(stories, calibration, tmp_path):
    model = trained(stories, method="gptq", method_options={"damping": 0.05}, calibration=calibration[:2])
    again = load_model(str(save_model(model, None, tmp_path / "model")))
    assert again.hf_quantizer.quantization_config.method_options == {"damping": 0.05}
