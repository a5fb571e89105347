"""Packed experts against the classes of transformers they come from, their weights rounded from outside."""

import copy

import pytest
import torch
from torch import nn
from transformers import DeepseekV3Config, GptOssConfig, JambaConfig, MixtralConfig, NemotronHConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.jamba.modeling_jamba import JambaExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from qllm_hf.nn import PackedExperts, expert_parameters, pack_experts_
from qllm_hf.scheme import PER_ROW, Spec
from qllm_hf.uniform import fake_quantize

pytestmark = pytest.mark.oldest

EXPERTS, HIDDEN, INTERMEDIATE, CHOICES = 4, 64, 88, 2  # 88: the last group of 32 is short
SIZES = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_experts_per_tok": CHOICES}
MOE = {**SIZES, "moe_intermediate_size": INTERMEDIATE}
# Gated, transposed with biases (gpt_oss), and without a gate (nemotron_h).
CLASSES = {
    "mixtral": (MixtralExperts, lambda: MixtralConfig(**SIZES, num_local_experts=EXPERTS)),
    "qwen3_moe": (Qwen3MoeExperts, lambda: Qwen3MoeConfig(**MOE, num_experts=EXPERTS)),
    "gpt_oss": (GptOssExperts, lambda: GptOssConfig(**SIZES, num_local_experts=EXPERTS)),
    "jamba": (JambaExperts, lambda: JambaConfig(**SIZES, num_experts=EXPERTS)),
    "deepseek_v3": (DeepseekV3Experts, lambda: DeepseekV3Config(**MOE, n_routed_experts=EXPERTS)),
    "nemotron_h": (NemotronHExperts, lambda: NemotronHConfig(**MOE, n_routed_experts=EXPERTS)),
}
families = pytest.mark.parametrize("family", CLASSES)
SPEC = Spec(4, 32)


def float_experts(family: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    experts_class, make_config = CLASSES[family]
    config = make_config()
    config._experts_implementation = "eager"
    experts = experts_class(config).to(dtype).requires_grad_(False)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    return experts


def packed_experts(experts: nn.Module, spec: Spec = SPEC, activation: Spec | None = None) -> PackedExperts:
    packed = copy.deepcopy(experts)
    weights = {name: weight.data for name, weight in expert_parameters(packed).items()}
    pack_experts_(packed, spec, activation, device="meta", placeholder=False)
    for name, weight in weights.items():
        packed.assign_packed(name, packed.pack(name, weight))
    return packed


def rounded(weight: torch.Tensor, experts: nn.Module, spec: Spec) -> torch.Tensor:
    """The weight on its grid; groups run along in_features, also where the weight is transposed."""
    if experts.is_transposed:
        return fake_quantize(weight.transpose(-1, -2).contiguous(), spec).transpose(-1, -2)
    return fake_quantize(weight, spec)


def rounded_experts(experts: nn.Module, spec: Spec = SPEC) -> nn.Module:
    experts = copy.deepcopy(experts)
    for weight in expert_parameters(experts).values():
        weight.data = rounded(weight.data, experts, spec)
    return experts


def routed(tokens: int = 7, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, chosen experts (each of them by some token) and their weights."""
    index = torch.stack([torch.randperm(EXPERTS)[:CHOICES] for _ in range(tokens)])
    index[0], index[1] = torch.tensor([0, 3]), torch.tensor([2, 1])
    return torch.randn(tokens, HIDDEN).to(dtype), index, torch.rand(tokens, CHOICES).to(dtype)


def token_by_token(experts: nn.Module, x, index, weights, activation: Spec | None) -> torch.Tensor:
    """The mixture in its plainest form, with every input of a product rounded."""

    def product(row: torch.Tensor, name: str, expert: int) -> torch.Tensor:
        row = row if activation is None else fake_quantize(row, activation)
        matrix = getattr(experts, name)[expert]
        matrix = matrix if experts.is_transposed else matrix.t()
        return row @ matrix + (getattr(experts, name + "_bias")[expert] if experts.has_bias else 0)

    def mixed(row: torch.Tensor, chosen: list[int], weights: torch.Tensor) -> torch.Tensor:
        gated = experts._apply_gate if experts.has_gate else experts.act_fn
        first = "gate_up_proj" if experts.has_gate else "up_proj"
        outputs = [product(gated(product(row, first, expert)), "down_proj", expert) for expert in chosen]
        return sum(weight * output for weight, output in zip(weights, outputs, strict=True))

    return torch.stack([mixed(*each) for each in zip(x, index.tolist(), weights, strict=True)])


@families
@pytest.mark.parametrize("spec", [SPEC, Spec(3, -1, symmetric=True), Spec(8, 0), Spec(2, 128)], ids=str)
def test_equals_the_class_with_rounded_weights(family, spec):
    experts = float_experts(family)
    packed, reference = packed_experts(experts, spec), rounded_experts(experts, spec)
    arguments = routed()
    torch.testing.assert_close(packed(*arguments), reference(*arguments), rtol=1e-5, atol=1e-4)
    assert not packed(*arguments).allclose(experts(*arguments), rtol=1e-3, atol=1e-3), "rounding matters"


@families
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_models(family, dtype):
    """The sum over experts is rounded once, the class of transformers rounds it each time: a few roundings apart."""
    experts = float_experts(family, dtype)
    packed, reference = packed_experts(experts), rounded_experts(experts)
    arguments = routed(dtype=dtype)
    y, wanted = packed(*arguments), reference(*arguments)
    assert y.dtype == dtype
    error = (y.double() - wanted.double()).norm() / wanted.double().norm()
    assert error < 2 * torch.finfo(dtype).eps


@families
@pytest.mark.parametrize("activation", [None, Spec(8, PER_ROW), Spec(4, PER_ROW, symmetric=True)], ids=str)
def test_inputs_of_both_products_are_rounded_per_token(family, activation):
    experts = float_experts(family)
    packed, reference = packed_experts(experts, SPEC, activation), rounded_experts(experts)
    arguments = routed()
    wanted = token_by_token(reference, *arguments, activation)
    torch.testing.assert_close(packed(*arguments), wanted, rtol=1e-4, atol=1e-4)
    if activation is not None:
        without = token_by_token(reference, *arguments, None)
        assert (without - wanted).abs().max() > 1e-2, "rounding of the inputs matters"


@families
def test_gradients_reach_the_router_and_the_input(family):
    experts = float_experts(family)
    packed, reference = packed_experts(experts), rounded_experts(experts)
    x, index, weights = routed()
    gradients = []
    for module in (packed, reference):
        inputs = x.clone().requires_grad_(), weights.clone().requires_grad_()
        module(inputs[0], index, inputs[1]).square().sum().backward()
        gradients.append([each.grad for each in inputs])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


@families
def test_gradient_passes_through_rounded_inputs(family):
    packed = packed_experts(float_experts(family), SPEC, Spec(8, PER_ROW))
    x, index, weights = routed()
    with_gradient = packed(x.clone().requires_grad_(), index, weights)
    torch.testing.assert_close(with_gradient.detach(), packed(x, index, weights), rtol=1e-5, atol=3e-5)
    assert with_gradient.requires_grad


@families
def test_weights_read_as_the_rounded_ones(family):
    experts = float_experts(family)
    packed, reference = packed_experts(experts), rounded_experts(experts)
    for name, weight in expert_parameters(reference).items():
        assert getattr(packed, name).equal(weight)
        assert packed.unpack(name, torch.bfloat16).equal(weight.bfloat16())


@families
def test_is_still_what_it_was(family):
    experts = float_experts(family)
    packed = packed_experts(experts)
    assert isinstance(packed, type(experts))
    assert isinstance(packed, PackedExperts)
    assert type(packed) is type(packed_experts(experts)), "one class for all layers"
    assert packed.num_experts == EXPERTS
    biases = {name for name, _ in experts.named_parameters()} - expert_parameters(experts).keys()
    assert set(packed.state_dict()) == biases | set(packed.packed_names())
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_twins_are_independent():
    packed = packed_experts(float_experts("mixtral"))
    arguments = routed()
    before = packed(*arguments)
    twin = copy.deepcopy(packed)
    twin.down_proj_scale.data.zero_()
    assert twin(*arguments).abs().max() == 0
    assert packed(*arguments).equal(before)


def test_only_experts_that_were_chosen_are_dequantized():
    packed = packed_experts(float_experts("mixtral"))
    x, index, weights = routed()
    index[index == EXPERTS - 1] = 0
    wanted = packed(x, index, weights)
    packed.gate_up_proj_scale.data[EXPERTS - 1] = torch.nan
    assert packed(x, index, weights).equal(wanted)
    packed.gate_up_proj_scale.data[0] = torch.nan
    assert packed(x, index, weights).isnan().any()


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_expert_of_another_process_adds_nothing(family):
    """Under expert parallelism a choice that lies elsewhere has the number past the last expert."""
    packed = packed_experts(float_experts(family))
    x, index, weights = routed()
    elsewhere = index.clone()
    elsewhere[:, 1] = EXPERTS
    only_first = weights.clone()
    only_first[:, 1] = 0
    torch.testing.assert_close(packed(x, elsewhere, weights), packed(x, index, only_first), rtol=1e-5, atol=1e-5)
    assert not packed(x, elsewhere, weights).allclose(packed(x, index, weights))


def test_no_tokens():
    packed = packed_experts(float_experts("mixtral"))
    x, index, weights = routed()
    assert packed(x[:0], index[:0], weights[:0]).shape == (0, HIDDEN)


def test_norm_after_each_expert():
    modeling = pytest.importorskip("transformers.models.muse_spark.modeling_muse_spark")
    config = modeling.MuseSparkTextConfig(
        **MOE, moe_hidden_size=HIDDEN, num_local_experts=EXPERTS, num_attention_heads=4, num_key_value_heads=2
    )
    config._experts_implementation = "eager"
    experts = modeling.MuseSparkExperts(config).requires_grad_(False)
    for weight in expert_parameters(experts).values():
        nn.init.normal_(weight, std=0.3)
    packed, reference, arguments = packed_experts(experts), rounded_experts(experts), routed()
    wanted = reference(*arguments)
    torch.testing.assert_close(packed(*arguments), wanted, rtol=1e-4, atol=1e-4)
    packed.has_post_expert_norm = False
    assert not packed(*arguments).allclose(wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("device", "placeholder"), [("meta", True), ("cpu", False)])
def test_empty_packed_weights(device, placeholder):
    experts = float_experts("gpt_oss", torch.bfloat16)
    shapes = {name: weight.shape for name, weight in expert_parameters(experts).items()}
    pack_experts_(experts, SPEC, None, device=device, placeholder=placeholder)
    for name in shapes:
        assert getattr(experts, f"{name}_packed").device.type == device
        assert getattr(experts, f"{name}_scale").dtype == torch.bfloat16
        assert (name in experts._parameters) == placeholder
        if placeholder:
            assert (getattr(experts, name).shape, getattr(experts, name).is_meta) == (shapes[name], True)


def test_other_modules_are_no_experts():
    experts = float_experts("mixtral")
    assert set(expert_parameters(experts)) == {"gate_up_proj", "down_proj"}
    assert expert_parameters(nn.Linear(4, 4)) == {}
    experts.gate_up_proj = None
    assert expert_parameters(experts) == {}
