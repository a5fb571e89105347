"""Layers that are given the same input compute together, and nobody notices but the clock."""

import copy
import pickle

import pytest
import torch
from tiny_models import float_model

from qllm_hf import QllmConfig, quantize_
from qllm_hf.native import is_there
from qllm_hf.nn import PackedLinear, Siblings
from qllm_hf.scheme import Scheme

pytestmark = pytest.mark.skipif(not is_there(), reason="needs the CPU kernels: see `qllm-hf env`")


NAMES = ("q_proj", "k_proj", "v_proj")


def attention(scheme="W4A8"):
    model = float_model("llama")
    parsed = Scheme.parse(scheme)
    quantize_(model, QllmConfig(w=parsed.w, a=parsed.a, w_group_size=parsed.w_group_size))
    return model.model.layers[0].self_attn


def apart(layer, x):
    """What the layer makes of x without its siblings."""
    alone = copy.copy(layer)
    alone.siblings = None
    return alone(x)


@pytest.mark.parametrize("scheme", ["W4", "W8A8", "W3g32"])
def test_results_are_those_of_each_layer_alone(scheme):
    attn = attention(scheme)
    with torch.no_grad():
        for tokens in (1, 3, 20):
            x = torch.randn(2, tokens, attn.q_proj.in_features)
            for name in NAMES:
                layer = attn.get_submodule(name)
                assert torch.equal(layer(x), apart(layer, x)), (name, tokens)
    assert not attn.q_proj.siblings.apart


def test_the_first_layer_computes_for_all(monkeypatch):
    attn = attention()
    x = torch.randn(1, 1, attn.q_proj.in_features)
    with torch.no_grad():
        attn.q_proj(x)
        monkeypatch.setattr(PackedLinear, "_product", None)  # nobody may compute alone now
        assert attn.k_proj(x).shape[-1] == attn.k_proj.out_features
        assert attn.v_proj(x).shape[-1] == attn.v_proj.out_features
        with pytest.raises(TypeError):
            attn.v_proj(x.clone())


def test_layers_that_reorder_their_input_stay_apart():
    attn = attention()
    order = torch.randperm(attn.q_proj.in_features)
    attn.k_proj.assign_input_order(order.int())
    layers = [attn.get_submodule(name) for name in NAMES]
    siblings = Siblings(layers)
    for layer in layers:
        layer.siblings = siblings
    assert siblings.apart
    x = torch.randn(1, 4, len(order))
    with torch.no_grad():
        for layer in layers:
            torch.testing.assert_close(layer(x), x @ layer.float_matrix().T, rtol=0.1, atol=0.1)
            assert torch.equal(layer(x), apart(layer, x))
        assert not torch.allclose(attn.k_proj(x[..., order.argsort()]), attn.k_proj(x), rtol=0.1, atol=0.1)


def test_an_input_that_was_changed_in_between_is_not_mistaken():
    attn = attention()
    x = torch.randn(1, 4, attn.q_proj.in_features)
    with torch.no_grad():
        attn.q_proj(x)
        x.mul_(2)
        assert torch.equal(attn.k_proj(x), apart(attn.k_proj, x))


def test_an_equal_input_that_is_another_tensor_is_computed():
    attn = attention()
    x = torch.randn(1, 4, attn.q_proj.in_features)
    with torch.no_grad():
        attn.q_proj(x)
        y = torch.randn_like(x)
        assert torch.equal(attn.k_proj(y), apart(attn.k_proj, y))


def test_layers_that_are_not_all_called_stop_working_together():
    attn = attention()
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(1, 1, attn.q_proj.in_features)
            assert torch.equal(attn.q_proj(x), apart(attn.q_proj, x))
    assert attn.q_proj.siblings.apart


def test_a_changed_weight_is_seen():
    attn = attention()
    x = torch.randn(1, 1, attn.q_proj.in_features)
    with torch.no_grad():
        before = [attn.get_submodule(name)(x) for name in NAMES]
        attn.k_proj.weight_scale.mul_(2)
        after = [attn.get_submodule(name)(x) for name in NAMES]
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(after[1], 2 * before[1])


def test_copies_and_pickles_have_siblings_of_their_own():
    attn = attention()
    x = torch.randn(1, 1, attn.q_proj.in_features)
    with torch.no_grad():
        attn.q_proj(x)
        for other in (copy.deepcopy(attn), pickle.loads(pickle.dumps(attn))):
            assert other.q_proj.siblings.layers[1] is other.k_proj
            other.k_proj.weight_scale.zero_()
            for name in NAMES:
                assert torch.equal(other.get_submodule(name)(x), apart(other.get_submodule(name), x))


def test_gradients_and_inference_mode():
    attn = attention("W4")
    x = torch.randn(1, 2, attn.q_proj.in_features, requires_grad=True)
    sum(attn.get_submodule(name)(x).sum() for name in NAMES).backward()
    assert x.grad.abs().sum() > 0
    with torch.inference_mode():
        y = torch.randn(1, 2, attn.q_proj.in_features)
        for name in NAMES:
            assert torch.equal(attn.get_submodule(name)(y), apart(attn.get_submodule(name), y))
