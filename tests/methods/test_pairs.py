"""Scales move only where the float model does not notice, and every place of each family is found."""

from functools import partial

import pytest
import torch
from tiny_models import MODELS, float_model, on_one_thread, prompt
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from qllm_hf import QllmConfig
from qllm_hf.methods.as_packed import run_as_packed_
from qllm_hf.methods.blocks import Blocks, block_list
from qllm_hf.methods.heads import heads_of
from qllm_hf.methods.pairs import find_pairs
from qllm_hf.methods.scales import Pair, adds_one, applied, apply_scale, linear_matrix, scale_input
from qllm_hf.plan import make_plan

pytestmark = pytest.mark.oldest
_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)
families = pytest.mark.parametrize("name", MODELS)

ATTENTION = "norm input_layernorm > self_attn.q_proj self_attn.k_proj self_attn.v_proj"
VALUES = "linear self_attn.v_proj > self_attn.o_proj"
UP = "linear mlp.up_proj > mlp.down_proj"
LLAMA = (ATTENTION, VALUES, "norm post_attention_layernorm > mlp.gate_proj mlp.up_proj", UP)
GEMMA2 = (ATTENTION, VALUES, "norm pre_feedforward_layernorm > mlp.gate_proj mlp.up_proj", UP)
GLM = (
    ATTENTION,
    VALUES,
    "norm post_attention_layernorm > mlp.gate_up_proj",
    "linear mlp.gate_up_proj > mlp.down_proj",
)
FUSED_VALUES = "linear self_attention.query_key_value > self_attention.dense"
AFTER_GELU = "input > mlp.dense_4h_to_h"
EXPERTS = "experts mlp.experts.gate_up_proj > mlp.experts.down_proj"
MLA = (
    "norm input_layernorm > self_attn.q_a_proj self_attn.kv_a_proj_with_mqa",
    "norm self_attn.q_a_layernorm > self_attn.q_b_proj",
    "norm self_attn.kv_a_layernorm > self_attn.kv_b_proj",
    "linear self_attn.kv_b_proj > self_attn.o_proj",
)
MAMBA_IN_JAMBA = (
    "norm input_layernorm > mamba.in_proj",
    "input > mamba.x_proj",
    "norm mamba.dt_layernorm > mamba.dt_proj",
    "input > mamba.out_proj",
    "norm pre_ff_layernorm > feed_forward.gate_proj feed_forward.up_proj",
    "linear feed_forward.up_proj > feed_forward.down_proj",
)
# (family, block) -> its pairs, "kind producer > consumers".
EXPECTED: dict[tuple[str, int], tuple[str, ...]] = {
    ("opt", 0): (
        "norm self_attn_layer_norm > self_attn.k_proj self_attn.v_proj self_attn.q_proj",
        "linear self_attn.v_proj > self_attn.out_proj",
        "norm final_layer_norm > fc1",
        "linear fc1 > fc2",  # behind ReLU
    ),
    **{(name, 0): LLAMA for name in ("llama", "vicuna", "longchat", "mistral", "stablelm", "gemma", "qwen2", "qwen3")},
    ("falcon", 0): (
        "norm input_layernorm > self_attention.query_key_value mlp.dense_h_to_4h",
        FUSED_VALUES,
        AFTER_GELU,
    ),
    ("falcon_new", 0): (
        "norm ln_attn > self_attention.query_key_value",
        FUSED_VALUES,
        "norm ln_mlp > mlp.dense_h_to_4h",
        AFTER_GELU,
    ),
    ("bloom", 0): (
        "norm input_layernorm > self_attention.query_key_value",
        FUSED_VALUES,
        "norm post_attention_layernorm > mlp.dense_h_to_4h",
        AFTER_GELU,
    ),
    ("mixtral", 0): (ATTENTION, VALUES, "norm post_attention_layernorm > mlp.gate mlp.experts.gate_up_proj", EXPERTS),
    ("glm", 0): GLM,
    ("glm4", 0): GLM,
    ("gemma2", 0): GEMMA2,
    ("gemma3_text", 0): GEMMA2,
    ("mamba", 0): ("norm norm > mixer.in_proj", "input > mixer.x_proj", "input > mixer.out_proj"),
    ("mamba2", 0): ("norm norm > mixer.in_proj", "norm mixer.norm > mixer.out_proj"),
    ("jamba", 0): MAMBA_IN_JAMBA,
    ("jamba", 1): (
        ATTENTION,
        VALUES,
        "norm pre_ff_layernorm > feed_forward.router feed_forward.experts.gate_up_proj",
        "experts feed_forward.experts.gate_up_proj > feed_forward.experts.down_proj",
    ),
    # Keys, values and receptances read mixtures of what the norm puts out, some the same until they are trained. A
    # square follows the keys of the second half.
    ("rwkv", 0): (
        "input > attention.receptance",
        "linear attention.value > attention.output",
        "input > feed_forward.value",
    ),
    ("rwkv", 1): (
        "input > attention.key",
        "input > attention.value",
        "input > attention.receptance",
        "linear attention.value > attention.output",
        "input > feed_forward.value",
    ),
    ("falcon_h1", 0): (
        "norm pre_ff_layernorm > feed_forward.gate_proj feed_forward.up_proj",
        "linear feed_forward.up_proj > feed_forward.down_proj",
        "norm input_layernorm > mamba.in_proj self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "input > mamba.out_proj",
        VALUES,
    ),
    ("qwen3_moe", 0): (ATTENTION, VALUES, "norm post_attention_layernorm > mlp.experts.gate_up_proj mlp.gate", EXPERTS),
    ("phi", 0): (
        "norm input_layernorm > self_attn.q_proj self_attn.k_proj self_attn.v_proj mlp.fc1",
        "linear self_attn.v_proj > self_attn.dense",
        "input > mlp.fc2",
    ),
    ("phi3", 0): (
        "norm input_layernorm > self_attn.qkv_proj",
        "linear self_attn.qkv_proj > self_attn.o_proj",
        *GLM[2:],
    ),
    ("gpt2", 0): (
        "norm ln_1 > attn.c_attn",
        "linear attn.c_attn > attn.c_proj",
        "norm ln_2 > mlp.c_fc",
        "input > mlp.c_proj",
    ),
    ("gpt_neox", 0): (
        "norm input_layernorm > attention.query_key_value",
        "linear attention.query_key_value > attention.dense",
        "norm post_attention_layernorm > mlp.dense_h_to_4h",
        AFTER_GELU,
    ),
    ("gptj", 0): (
        "norm ln_1 > attn.k_proj attn.v_proj attn.q_proj mlp.fc_in",
        "linear attn.v_proj > attn.out_proj",
        "input > mlp.fc_out",
    ),
    ("mpt", 0): (
        "norm norm_1 > attn.Wqkv",
        "linear attn.Wqkv > attn.out_proj",
        "norm norm_2 > ffn.up_proj",
        "input > ffn.down_proj",
    ),
    ("gpt_oss", 0): (ATTENTION, VALUES, "norm post_attention_layernorm > mlp.router mlp.experts.gate_up_proj"),
    ("deepseek_v3", 0): (*MLA, *LLAMA[2:]),
    ("deepseek_v3", 1): (
        *MLA,
        "norm post_attention_layernorm > mlp.experts.gate_up_proj mlp.gate mlp.shared_experts.gate_proj "
        "mlp.shared_experts.up_proj",
        EXPERTS,
        "linear mlp.shared_experts.up_proj > mlp.shared_experts.down_proj",
    ),
}
# (family, block) -> quantized weights that no scale can be moved out of: nobody reads their input alone.
SKIPPED = {
    ("rwkv", 0): {"attention.key", "attention.value", "feed_forward.key", "feed_forward.receptance"},
    ("rwkv", 1): {"feed_forward.key", "feed_forward.receptance"},
    ("gpt_oss", 0): {"mlp.experts.down_proj"},  # the gate is clamped and 1 is added to the rest
}


class Walk:
    """A float model that takes the paths of a packed one, and what its blocks get for one prompt."""

    @torch.no_grad()
    def __init__(self, model, ids: Tensor) -> None:
        self.model, self.ids = model, ids
        run_as_packed_(model)
        self.logits = self.run()
        self.plan = make_plan(model, QllmConfig(w=4))
        self.blocks = Blocks(model, block_list(model, self.plan))
        self.hidden = [self.blocks.embed(ids)]
        for index in range(len(self.blocks) - 1):
            self.hidden.append(self.blocks.advance(index, ids, self.hidden[-1]))

    def run(self) -> Tensor:
        with torch.no_grad():
            return self.model(self.ids, use_cache=False).logits

    def run_block(self, index: int) -> Tensor:
        return self.blocks.run(index, self.ids, self.hidden[index])

    def find(self, index: int, shared: frozenset[str] = frozenset()):
        prefix = f"{self.blocks.name}.{index}."
        quantized = {entry.name.removeprefix(prefix) for entry in self.plan.quantized() if prefix in entry.name}
        run = partial(self.run_block, index)
        return find_pairs(self.blocks.modules[index], run, heads_of(self.model.config), shared, frozenset(quantized))

    def change(self, index: int, pair: Pair) -> float:
        """How far the block's output moves when random scales are moved along a pair, as part of the output."""
        block = self.blocks.modules[index]
        before = self.run_block(index)
        with applied(block, pair, random_scale(block, pair)):
            moved = self.run_block(index)
        assert torch.equal(self.run_block(index), before), "everything is as it was"
        return float((moved - before).abs().max() / before.abs().max())


def walk(name: str) -> Walk:
    return Walk(float_model(name), prompt(name))


def random_scale(block: nn.Module, pair: Pair, seed: int = 1) -> Tensor:
    """Between 1/e and e."""
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(torch.rand(pair.scale_shape(block), generator=generator) * 2 - 1)


def text_of(pair: Pair) -> str:
    names = [name.removesuffix(".weight") for name in (pair.producer, ">", *pair.consumers) if name]
    return " ".join([pair.kind, *names])


def move_all(walk: Walk) -> None:
    for index, block in enumerate(walk.blocks.modules):
        for seed, pair in enumerate(walk.find(index)[0]):
            moved = apply_scale(block, pair, random_scale(block, pair, seed))
            if pair.kind == "input":
                scale_input(block.get_submodule(pair.consumers[0].removesuffix(".weight")), 1 / moved)


@families
def test_scales_along_all_pairs_do_not_change_the_logits(name):
    here = walk(name)
    before = {key: value.clone() for key, value in here.model.state_dict().items()}
    move_all(here)
    assert sum(not torch.equal(value, before[key]) for key, value in here.model.state_dict().items()) > 4
    assert float((here.run() - here.logits).abs().max()) <= 1e-4 * max(1.0, float(here.logits.abs().max()))


@families
def test_each_block_has_the_pairs_of_its_architecture(name):
    here = walk(name)
    for index in (0, 1):
        pairs, skipped = here.find(index)
        key = (name, index) if (name, index) in EXPECTED else (name, 0)
        assert sorted(map(text_of, pairs)) == sorted(EXPECTED[key])
        assert {weight.removesuffix(".weight") for weight in skipped} == SKIPPED.get(key, set())


def test_grouped_queries_share_the_scale_of_their_value_head():
    here = walk("llama")
    pair = next(pair for pair in here.find(0)[0] if "v_proj" in pair.producer)
    head = here.model.config.hidden_size // here.model.config.num_attention_heads
    assert pair.scale_shape(here.blocks.modules[0]) == (2 * head,)
    assert torch.equal(pair.rows, torch.cat([torch.arange(head) + head * owner for owner in (0, 0, 1, 1)]))
    values = torch.arange(4.0 * head)
    assert torch.equal(pair.gathered(pair.spread(values[: 2 * head])), values[: 2 * head])
    assert torch.equal(pair.gathered(values)[:head], values[:head] + head / 2), "the mean of both"


def replaced(pair: Pair, producer: str | None = None, rows: Tensor | None = None) -> Pair:
    rows = pair.rows if rows is None else rows
    return Pair(pair.kind, producer or pair.producer, pair.consumers, rows)


LAST = 128 + torch.arange(64)
# family, what the pair's producer is called, (another producer, how its rows lie)
WRONG = {
    "gate for up": ("llama", "mlp.up_proj.weight", "mlp.gate_proj.weight", None),
    "gate rows of a fused weight": ("glm", "mlp.gate_up_proj.weight", None, torch.arange(88)),
    "gate rows of fused experts": ("mixtral", "mlp.experts.gate_up_proj", None, torch.arange(88)),
    "interleaved for halves": ("mixtral", "mlp.experts.gate_up_proj", None, 2 * torch.arange(88) + 1),
    "keys for values": ("llama", "self_attn.v_proj.weight", "self_attn.k_proj.weight", None),
    "queries of a fused weight": ("gpt2", "attn.c_attn.weight", None, torch.arange(64)),
    "the last rows of weights fused by head": ("gpt_neox", "attention.query_key_value.weight", None, LAST),
    "heads that do not repeat": ("qwen2", "self_attn.v_proj.weight", None, torch.arange(64) % 32),
    "the norm before the attention for that after": ("llama", "post_attention_layernorm", "input_layernorm", None),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_pair_changes_the_block_and_is_never_found(what):
    name, producer, other, rows = WRONG[what]
    here = walk(name)
    pairs, _ = here.find(0)
    right = next(pair for pair in pairs if pair.producer == producer)
    wrong = replaced(right, other, rows)
    assert here.change(0, right) < 1e-5
    assert here.change(0, wrong) > 1e-3
    assert not any(
        pair.producer == wrong.producer and pair.consumers == wrong.consumers and torch.equal(pair.rows, wrong.rows)
        for pair in pairs
    )


class Mlp(nn.Module):
    """norm -> up -> down; `leak` hands the norm's output on as well, `between` comes behind `up`."""

    def __init__(self, *, leak: bool = False, between: str = "relu") -> None:
        super().__init__()
        self.norm = LlamaRMSNorm(16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.leak, self.between = leak, getattr(torch, between)

    def forward(self, x: Tensor) -> Tensor:
        read = self.norm(x)
        return self.down(self.between(self.up(read))) + (read if self.leak else x)


@torch.no_grad()
def pairs_of(block: nn.Module, **options) -> list[str]:
    x = torch.randn(1, 8, 16)
    return [text_of(pair) for pair in find_pairs(block, lambda: block(x), None, **options)[0]]


def test_a_norm_whose_output_goes_elsewhere_too_is_no_producer():
    assert pairs_of(Mlp()) == ["norm norm > up", "linear up > down"]
    assert pairs_of(Mlp(leak=True)) == ["input > up", "linear up > down"]


@pytest.mark.parametrize("residual_after_norm", [False, True])
def test_bloom_may_add_what_its_norm_puts_out(residual_after_norm):
    config = float_model("bloom").config
    config.apply_residual_connection_post_layernorm = residual_after_norm
    here = Walk(AutoModelForCausalLM.from_config(config).eval(), prompt("bloom"))
    first = "input" if residual_after_norm else "norm input_layernorm"
    assert f"{first} > self_attention.query_key_value" in [text_of(pair) for pair in here.find(0)[0]]
    move_all(here)
    assert torch.allclose(here.run(), here.logits, atol=1e-5)


@pytest.mark.parametrize(("between", "pair"), [("relu", "linear up > down"), ("tanh", "input > down")])
def test_only_a_function_that_scales_lets_a_scale_through(between, pair):
    assert pair in pairs_of(Mlp(between=between))


def test_shared_weights_are_left_alone():
    assert pairs_of(Mlp(), shared=frozenset({"down"})) == ["norm norm > up"]
    assert pairs_of(Mlp(), shared=frozenset({"up"})) == ["input > down"], "its rows would be another's rows"
    assert pairs_of(Mlp(), shared=frozenset({"norm"})) == ["input > up", "linear up > down"]


def test_pairs_that_help_no_quantized_weight_are_left_out():
    assert pairs_of(Mlp(), quantized=frozenset({"down.weight"})) == ["linear up > down"]
    assert pairs_of(Mlp(), quantized=frozenset()) == []


def test_a_layer_that_computes_nothing_gives_no_pair():
    block = Mlp()
    nn.init.zeros_(block.down.weight)
    assert pairs_of(block) == []


@families
def test_a_trial_is_undone_bit_for_bit(name):
    here = walk(name)
    block = here.blocks.modules[0]
    before = {key: value.clone() for key, value in block.state_dict().items()}
    for pair in here.find(0)[0]:
        for consumers_only in (False, True):
            with applied(block, pair, random_scale(block, pair), consumers_only=consumers_only):
                assert any(not torch.equal(value, before[key]) for key, value in block.state_dict().items())
            assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_a_trial_is_undone_after_an_error_too():
    block = Mlp()
    before = block.up.weight.clone()
    with (
        pytest.raises(KeyError),
        applied(block, Pair("norm", "norm", ("up.weight",), torch.arange(16)), torch.rand(16)),
    ):
        assert not torch.equal(block.up.weight, before)
        raise KeyError
    assert torch.equal(block.up.weight, before)


NORMS = [("llama", "input_layernorm"), ("gemma", "input_layernorm"), ("opt", "self_attn_layer_norm")]


@pytest.mark.parametrize(("name", "norm"), NORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_a_norm_to_its_stored_dtype_loses_nothing(name, norm, dtype):
    """The columns get what the norm really lost, so the product stays what it was."""
    here = walk(name)
    block = here.blocks.modules[0]
    module = block.get_submodule(norm)
    with torch.no_grad():
        module.weight.copy_(torch.randn(64).to(dtype))
    pair = next(pair for pair in here.find(0)[0] if pair.producer == norm)
    offset = float(adds_one(module))
    before = [linear_matrix(block.get_submodule(weight.removesuffix(".weight"))).clone() for weight in pair.consumers]
    old, output = module.weight + offset, here.run_block(0)
    wished = random_scale(block, pair)
    moved = apply_scale(block, pair, wished, dtype)
    assert torch.equal(module.weight, module.weight.to(dtype).float()), "it can be stored"
    if dtype != torch.float32:
        assert not torch.equal(moved, wished)
        assert torch.allclose(moved, wished, rtol=0.3)
    for weight, matrix in zip(pair.consumers, before, strict=True):
        now = linear_matrix(block.get_submodule(weight.removesuffix(".weight")))
        assert torch.allclose((module.weight + offset) * now, old * matrix, rtol=1e-6, atol=1e-9)
    assert torch.allclose(here.run_block(0), output, rtol=1e-4, atol=1e-4)


def test_a_norm_of_zeros_stays_one():
    block = Mlp()
    with torch.no_grad():
        block.norm.weight[:3] = 0
    before = block.up.weight.clone()
    moved = apply_scale(block, Pair("norm", "norm", ("up.weight",), torch.arange(16)), torch.full((16,), 2.0))
    assert moved.tolist() == [1.0] * 3 + [2.0] * 13
    assert torch.equal(block.up.weight[:, :3], before[:, :3])


@pytest.mark.parametrize(("name", "expected"), [("llama", False), ("gemma", True), ("gemma2", True), ("bloom", False)])
def test_norms_that_multiply_by_one_plus_their_weight_are_recognized(name, expected):
    norm = walk(name).blocks.modules[0].input_layernorm
    before = norm.weight.clone()
    assert adds_one(norm) == expected
    assert torch.equal(norm.weight, before)
