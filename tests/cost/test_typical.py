"""A model that was not named has typical shapes, and the assumption is said."""

import math

import pytest

from qllm_hf.cost.model import cost_of
from qllm_hf.cost.typical import LARGEST_B, SHAPES, typical_model
from qllm_hf.errors import ConfigError


def params_b(model):
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    return sum(parameter.numel() for parameter in model.parameters()) / 1e9


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_each_shape_has_its_models_parameters(shape):
    model, sentence = typical_model(shape.params_b, shape.moe)
    assert params_b(model) == pytest.approx(shape.params_b, rel=0.015)
    assert f"the shapes of {shape.name}, with its {shape.options['num_hidden_layers']} layers" in sentence
    assert shape.source


@pytest.mark.parametrize(
    ("size", "moe", "like", "near"),
    [
        (0.06, False, "OPT-125M", 0.06),
        (0.5, False, "OPT-1.3B", 0.05),
        (3, False, "StableLM-3B", 0.02),
        (7, False, "LLaMA2-7B", 0.02),
        (10, False, "LLaMA2-13B", 0.02),
        (34, False, "Vicuna-33B", 0.01),
        (120, False, "Falcon-180B", 0.01),
        (1000, False, "Llama-3.1-405B", 0.01),
        (2, True, "OLMoE-1B-7B", 0.1),
        (47, True, "Mixtral-8x7B", 0.02),
        (400, True, "DeepSeek-V3", 0.02),
    ],
)
def test_sizes_between_have_more_or_fewer_layers(size, moe, like, near):
    model, sentence = typical_model(size, moe)
    assert math.isclose(params_b(model), size, rel_tol=near)
    assert like in sentence
    assert f"{size:g} billion" in sentence
    assert str(model.config.num_hidden_layers) in sentence


@pytest.mark.parametrize("size", [0, -7, float("nan"), float("inf"), 7e9, LARGEST_B + 1, True, "7", None])
def test_sizes_that_cannot_be(size):
    with pytest.raises(ConfigError, match="in billions, such as 7"):
        typical_model(size)


@pytest.mark.parametrize(("size", "moe"), [(0.0001, False), (0.1, True), (1e-30, False)])
def test_too_small_for_its_kind(size, moe):
    with pytest.raises(ConfigError, match=r"too small for a .*: give at least 0"):
        typical_model(size, moe)


def test_what_is_made_has_a_cost():
    dense, experts = cost_of(typical_model(7).model, None), cost_of(typical_model(47, moe=True).model, None)
    assert dense.active_params == dense.params
    assert experts.active_params < experts.params / 3
    assert (dense.dtype, dense.crossover() > 25_000) == ("float16", True)
