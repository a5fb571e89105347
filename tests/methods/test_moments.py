"""What is remembered of the inputs stands for all tokens exactly, and searches find what trying everything finds."""

import pytest
import torch
from tiny_models import float_model, on_one_thread, prompt
from torch import Tensor, nn

from qllm_hf import QllmConfig, quantize_
from qllm_hf.errors import CalibrationError
from qllm_hf.methods.awq import search_scale
from qllm_hf.methods.moments import SAMPLE, Inputs, Moments, keeping, watching
from qllm_hf.methods.objective import Reader, quadratic
from qllm_hf.methods.rounding import search_limits
from qllm_hf.methods.scales import Pair
from qllm_hf.scheme import Spec
from qllm_hf.uniform import fake_quantize

_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)


def moments_of(*parts: Tensor) -> Moments:
    moments = Moments.empty(parts[0].shape[-1], "cpu")
    for part in parts:
        moments.add(part)
    return moments


def test_moments_are_sums_over_all_tokens():
    x, y = torch.randn(2, 50, 6)
    moments = Moments.empty(6, "cpu")
    for part in (slice(0, 20), slice(20, 20), slice(20, 50)):
        moments.add(x[part], y=y[part])
    assert moments.count == 50
    assert torch.allclose(moments.second, x.t() @ x, atol=1e-5)
    assert torch.allclose(moments.drift, (y - x).t() @ x, atol=1e-4)
    assert torch.allclose(moments.magnitude, x.abs().sum(0))
    assert torch.allclose(moments.mean_magnitude(), x.abs().mean(0))
    assert torch.equal(moments.peak, x.abs().amax(0))
    assert torch.equal(moments.sample, x)
    assert moments_of(x).drift is None


def test_the_sample_is_spread_over_all_tokens_and_ends():
    x = torch.arange(5000.0).unsqueeze(-1)
    moments = moments_of(x, x)
    assert moments.sample.shape == (SAMPLE, 1)
    assert (moments.sample[0], moments.sample[-1]) == (0, 4999)
    assert moments.sample.unique().numel() == SAMPLE
    few = Moments.empty(1, "cpu")
    few.add(x, keep=3)
    few.add(x, keep=2)
    assert few.sample.flatten().tolist() == [0, 2500, 4999, 0, 4999]


def test_moments_of_scaled_inputs_are_scaled_moments():
    x, y = torch.randn(2, 40, 6)
    factor = torch.rand(6) + 0.5
    scaled, direct = Moments.empty(6, "cpu"), Moments.empty(6, "cpu")
    scaled.add(x, y=y)
    direct.add(x * factor, y=y * factor)
    for part in ("second", "magnitude", "peak", "sample", "drift"):
        assert torch.allclose(getattr(scaled.scaled(factor), part), getattr(direct, part), atol=1e-5), part


def watch(model, block: nn.Module, names: list[str], experts: list[str], ids: Tensor, inputs: Inputs) -> Inputs:
    with torch.no_grad(), watching(block, names, experts, inputs, SAMPLE):
        for row in ids:
            inputs.next_pass()
            model(row.unsqueeze(0), use_cache=False)
    return inputs


def test_layers_that_read_one_tensor_share_its_moments():
    model, ids = float_model("llama"), prompt("llama")
    block = model.model.layers[0]
    names = [f"self_attn.{part}_proj" for part in "qkvo"] + ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    inputs = watch(model, block, names, [], ids, Inputs("block"))
    q, k, v, o, gate, up, down = (inputs.of(f"{name}.weight") for name in names)
    assert q is k is v
    assert gate is up
    assert len({id(part) for part in (q, o, gate, down)}) == 4
    assert {part.count for part in (q, o, gate, down)} == {ids.numel()}
    caught = []
    handle = block.mlp.down_proj.register_forward_pre_hook(lambda _, args: caught.append(args[0][0]))
    with torch.no_grad():
        model(ids[:1], use_cache=False)
        model(ids[1:], use_cache=False)
    handle.remove()
    assert torch.equal(down.sample, torch.cat(caught))
    assert torch.allclose(down.second, torch.cat(caught).t() @ torch.cat(caught), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_a_scale_of_one_layer_leaves_the_shared_moments_of_others():
    model, ids = float_model("llama"), prompt("llama")
    names = ["self_attn.q_proj", "self_attn.k_proj"]
    inputs = watch(model, model.model.layers[0], names, [], ids, Inputs("block"))
    before = inputs.of("self_attn.k_proj.weight").second.clone()
    inputs.rescale("self_attn.q_proj.weight", torch.full((64,), 2.0))
    assert torch.equal(inputs.of("self_attn.k_proj.weight").second, before)
    assert torch.allclose(inputs.of("self_attn.q_proj.weight").second, 4 * before)


def test_inputs_are_rounded_before_they_are_looked_at():
    model, ids = float_model("llama"), prompt("llama")
    spec = Spec(4, -1)
    rounded = Inputs("block", {"mlp.up_proj.weight": spec, "mlp.gate_proj.weight": spec})
    watch(model, model.model.layers[0], ["mlp.gate_proj", "mlp.up_proj"], [], ids, rounded)
    plain = watch(model, model.model.layers[0], ["mlp.up_proj"], [], ids, Inputs("block"))
    x = plain.of("mlp.up_proj.weight").sample
    assert torch.equal(rounded.of("mlp.up_proj.weight").sample, fake_quantize(x, spec))


def test_layers_that_round_one_tensor_differently_do_not_share_it():
    model, ids = float_model("llama"), prompt("llama")
    inputs = Inputs("block", {"mlp.gate_proj.weight": Spec(8, -1), "mlp.up_proj.weight": Spec(3, -1)})
    watch(model, model.model.layers[0], ["mlp.gate_proj", "mlp.up_proj"], [], ids, inputs)
    gate, up = (inputs.of(f"mlp.{part}_proj.weight").sample for part in ("gate", "up"))
    assert not torch.equal(gate, up)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_are_seen_reading_what_a_plain_loop_hands_them(name):
    model, ids = float_model(name), prompt(name)
    block = model.model.layers[1]
    experts = block.mlp.experts
    caught = []
    handle = experts.register_forward_pre_hook(lambda _, args: caught.append(args[:2]))
    inputs = watch(model, block, [], ["mlp.experts"], ids, Inputs("block"))
    handle.remove()
    outer, inner = (inputs.of_experts(f"mlp.experts.{part}") for part in ("gate_up_proj", "down_proj"))
    assert sum(part.count for part in outer) == 2 * ids.numel(), "each token goes to two experts"
    for index in range(4):
        x = torch.cat([hidden[(chosen == index).any(-1)] for hidden, chosen in caught])
        assert torch.equal(outer[index].sample, x)
        weight = experts.gate_up_proj[index].detach()
        y = x @ (weight if name == "gpt_oss" else weight.t())
        if name == "gpt_oss":
            y = y + experts.gate_up_proj_bias[index].detach()
            gate, up = y[:, ::2].clamp(max=experts.limit), y[:, 1::2].clamp(-experts.limit, experts.limit)
            hidden = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
        else:
            hidden = nn.functional.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1]
        assert inner[index].count == len(x)
        assert torch.allclose(inner[index].sample, hidden, atol=1e-5)
        assert torch.allclose(inner[index].second, hidden.t() @ hidden, rtol=1e-4, atol=1e-4)


def test_an_expert_that_no_token_chose_has_seen_nothing():
    model = float_model("mixtral")
    inputs = Inputs("block")
    chosen = torch.tensor([[0, 2]] * 5)
    inputs.watch_experts("mlp.experts", model.model.layers[0].mlp.experts, torch.randn(5, 64), chosen, SAMPLE)
    assert [part.count for part in inputs.of_experts("mlp.experts.gate_up_proj")] == [5, 0, 5, 0]


def test_the_float_model_is_seen_beside_the_rounded_one():
    model, other, ids = float_model("llama"), float_model("llama", seed=1), prompt("llama")
    inputs, names = Inputs("block"), ["mlp.down_proj"]
    with torch.no_grad(), keeping(other.model.layers[0], names, [], inputs.float_inputs):
        other(ids, use_cache=False)
    y = inputs.float_inputs["mlp.down_proj.weight"].reshape(-1, 88)
    with torch.no_grad(), watching(model.model.layers[0], names, [], inputs, SAMPLE):
        model(ids, use_cache=False)
    moments = inputs.of("mlp.down_proj.weight")
    assert torch.allclose(moments.drift, (y - moments.sample).t() @ moments.sample, rtol=1e-4, atol=1e-4)
    inputs.next_pass()
    assert inputs.float_inputs == {}


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinite values")])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_activations_that_are_not_finite_name_the_layer(value, kind, name):
    model = float_model(name)
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = value
    layer = r"model\.layers\.1\.mlp\.(gate_proj|experts)"
    with pytest.raises(CalibrationError, match=rf"the input of {layer}.* holds {kind}.*Check the checkpoint"):
        quantize_(model, QllmConfig(w=4, method="gptq", calibration=prompt(name)))


# What is chosen by them


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("columns", "group_size"), [(24, 8), (20, 8), (24, -1)])
def test_the_search_for_ranges_finds_what_trying_all_of_them_finds(columns, group_size, symmetric):
    spec, x, matrix = Spec(3, group_size, symmetric), torch.randn(60, columns), torch.randn(4, columns)
    matrix[:, ::5] *= 3
    limits = search_limits(matrix, x.t() @ x, spec, 10, 0.5)
    size = group_size if group_size > 0 else columns
    count = -(-columns // size)
    assert limits.shape == (4, count)
    assert (
        limits < torch.nn.functional.pad(matrix, (0, count * size - columns)).view(4, count, -1).abs().amax(-1)
    ).any()
    for row in range(4):
        for index in range(count):
            part = slice(index * size, min((index + 1) * size, columns))
            group, tokens = matrix[row, part], x[:, part]
            bounds = [group.abs().max() * (1 - step / 10) for step in range(5)]
            losses = [
                float(
                    (tokens @ (fake_quantize(group.clamp(-bound, bound), Spec(3, -1, symmetric)) - group))
                    .square()
                    .sum()
                )
                for bound in bounds
            ]
            assert float(limits[row, index]) == pytest.approx(float(bounds[losses.index(min(losses))]), rel=1e-6)


def test_the_search_for_ranges_does_not_depend_on_how_rows_are_cut(monkeypatch):
    from qllm_hf.methods import rounding

    spec, x, matrix = Spec(3, 8), torch.randn(60, 20), torch.randn(7, 20)
    whole = search_limits(matrix, x.t() @ x, spec, 10, 0.5)
    monkeypatch.setattr(rounding, "_PIECE", 40)
    assert torch.equal(search_limits(matrix, x.t() @ x, spec, 10, 0.5), whole)


def test_least_1_keeps_the_whole_range():
    matrix, second = torch.randn(3, 16), torch.eye(16)
    limits = search_limits(matrix, second, Spec(2, -1), 20, 1.0)
    assert torch.equal(limits, matrix.abs().amax(-1, keepdim=True))
    assert not torch.equal(search_limits(matrix, second, Spec(2, -1), 20, 0.5), limits)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_loss_of_a_reader_is_the_error_of_its_output(scaled):
    x, matrix, spec = torch.randn(200, 16), torch.randn(5, 16), Spec(3, 8)
    scale = torch.rand(16) + 0.5 if scaled else None
    loss = Reader(matrix, moments_of(x), spec, None).loss(scale)
    factor = scale if scaled else torch.ones(16)
    rounded = fake_quantize(matrix * factor, spec) / factor
    assert loss == pytest.approx(float((x @ (matrix - rounded).t()).square().sum()), rel=1e-4)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_loss_with_rounded_inputs_is_the_error_of_its_output(scaled):
    x, matrix, spec, activation = torch.randn(200, 16), torch.randn(5, 16), Spec(4, 8), Spec(4, -1)
    scale = torch.rand(16) + 0.5 if scaled else torch.ones(16)
    loss = Reader(matrix, moments_of(x), spec, activation).loss(scale if scaled else None)
    y = fake_quantize(x / scale, activation) @ fake_quantize(matrix * scale, spec).t()
    assert loss == pytest.approx(float((x @ matrix.t() - y).square().sum()), rel=1e-4)


def test_the_quadratic_form_is_a_sum_over_tokens():
    error, x = torch.randn(5, 16), torch.randn(40, 16)
    assert quadratic(error, x.t() @ x) == pytest.approx(float((x @ error.t()).square().sum()), rel=1e-5)


def test_the_scale_that_is_found_is_the_best_of_the_grid():
    x, matrix, spec = torch.randn(300, 16), torch.randn(8, 16), Spec(3, -1)
    x[:, 3] *= 50
    reader = Reader(matrix, moments_of(x), spec, None)
    pair = Pair("norm", "norm", ("weight",), torch.arange(16))
    found = search_scale(pair, [reader], 10)
    mean = x.abs().mean(0)
    grid = [mean.pow(step / 10) for step in range(10)]
    grid = [scale / (scale.max() * scale.min()).sqrt() for scale in grid]
    losses = [reader.loss(scale) for scale in grid]
    assert torch.allclose(found, grid[losses.index(min(losses))], rtol=1e-4)
    assert found[3] == found.max() > 1
    assert reader.loss(found) < 0.5 * reader.loss()


def test_no_scale_is_moved_where_none_helps():
    """Each weight lies on the grid already."""
    reader = Reader(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), moments_of(torch.randn(30, 4).cumsum(-1)), Spec(2, -1), None)
    assert torch.equal(search_scale(Pair("norm", "n", ("w",), torch.arange(4)), [reader], 20), torch.ones(4))
