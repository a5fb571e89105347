"""Running blocks one at a time is running the model."""

import copy

import pytest
import torch
from tiny_models import MODELS, float_model, on_one_thread, prompt
from torch import nn

from qllm_hf import QllmConfig
from qllm_hf.errors import ModelError
from qllm_hf.methods.as_packed import run_as_packed_
from qllm_hf.methods.blocks import Blocks, block_list
from qllm_hf.plan import make_plan

pytestmark = pytest.mark.oldest
_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)
families = pytest.mark.parametrize("name", MODELS)


def blocks_of(model) -> Blocks:
    run_as_packed_(model)
    return Blocks(model, block_list(model, make_plan(model, QllmConfig(w=4))))


@torch.no_grad()
def logits(model, ids):
    return model(ids, use_cache=False).logits


@families
def test_block_after_block_gives_the_logits_of_the_model(name):
    model, ids = float_model(name), prompt(name)
    blocks = blocks_of(model)
    expected = logits(model, ids)
    hidden = [blocks.embed(ids)]
    for index in range(len(blocks)):
        hidden.append(blocks.advance(index, ids, hidden[-1]))
    for start, before in enumerate(hidden):
        assert torch.equal(blocks.finish(start, ids, before), expected), f"from block {start}"


@families
def test_other_hidden_states_give_other_logits(name):
    model, ids = float_model(name), prompt(name)
    blocks = blocks_of(model)
    hidden = blocks.embed(ids)
    last = blocks.advance(0, ids, hidden)
    different = [blocks.finish(0, ids, hidden * 1.01 + 0.1), blocks.finish(1, ids, last * 0.9 + 0.1)]
    assert all(not torch.allclose(other, logits(model, ids), atol=1e-3) for other in different)


@families
def test_the_model_is_left_as_it_was(name):
    model, ids = float_model(name), prompt(name)
    blocks = blocks_of(model)
    before, expected = copy.deepcopy(model.state_dict()), logits(model, ids)
    blocks.finish(1, ids, blocks.advance(0, ids, blocks.embed(ids)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(logits(model, ids), expected)


def test_what_stood_in_the_place_of_a_forward_is_put_back():
    """accelerate keeps its own there."""
    model, ids = float_model("llama"), prompt("llama")
    blocks = blocks_of(model)
    calls = []
    block = blocks.modules[1]
    original = block.forward

    def forward(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    block.forward = forward
    blocks.advance(0, ids, blocks.embed(ids))
    assert block.forward is forward
    logits(model, ids)
    assert calls == [1]


def test_an_error_within_a_block_leaves_the_model_whole():
    model, ids = float_model("llama"), prompt("llama")
    blocks = blocks_of(model)
    expected, hidden = logits(model, ids), blocks.embed(ids)
    with pytest.raises(RuntimeError):
        blocks.run(0, ids, hidden[..., :5])
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("name", ["llama", "falcon", "mixtral", "mamba", "bloom"])
def test_a_block_in_float32_runs_within_a_model_in_bfloat16(name):
    """Masks and rotary embeddings come in the model's dtype and are cast."""
    whole, ids = float_model(name), prompt(name)
    mixed = float_model(name).to(torch.bfloat16)
    blocks = blocks_of(mixed)
    hidden = blocks.embed(ids)
    assert hidden.dtype == torch.float32
    exact = blocks_of(whole)
    blocks.modules[0].load_state_dict(exact.modules[0].state_dict())
    blocks.modules[0].float()
    out = blocks.advance(0, ids, hidden)
    assert out.dtype == torch.float32
    error = (out - exact.advance(0, ids, hidden)).abs().max() / out.abs().max()
    assert error < 0.02, "what is left is the rounding of rotary embeddings"


def test_the_list_that_holds_the_blocks_is_the_one_with_the_weights():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.few = nn.ModuleList([nn.Linear(4, 4)])
            self.many = nn.ModuleList([nn.Sequential(nn.Linear(32, 32), nn.ModuleList([nn.Linear(4, 4)]))] * 2)

    assert block_list(Model(), make_plan(Model(), QllmConfig(w=4))) == "many"


def test_a_model_without_blocks_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ModelError, match=r"Sequential has no list of decoder blocks.*method='rtn'"):
        block_list(model, make_plan(model, QllmConfig(w=4)))
