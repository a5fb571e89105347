"""What is said of weights, inputs, keys and values is what plain hooks and an ordinary cache see of the float model."""

import math

import pytest
import torch
from tiny_models import MODELS, float_model, on_one_thread, prompt
from transformers import AutoModelForCausalLM, DynamicCache

from qllm_hf import CalibrationError, ModelError, QllmConfig, Scheme, quantize_
from qllm_hf.analysis.gathering import Row
from qllm_hf.analysis.noise import BITS
from qllm_hf.analysis.tensors import measure
from qllm_hf.methods.blocks import Blocks, block_list
from qllm_hf.methods.calibration import Calibration, token_blocks
from qllm_hf.methods.residence import FromDisk, InMemory
from qllm_hf.plan import make_plan
from qllm_hf.streamed import offloaded
from qllm_hf.uniform import fake_quantize

_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)

FAMILIES = ["llama", "falcon", "mixtral", "mamba", "deepseek_v3"]


def statistics(model, ids=None) -> dict[tuple[str, str], Row]:
    """Rows by kind and name, of a model in memory."""
    blocks = Blocks(model, block_list(model, make_plan(model, QllmConfig(w=4))))
    calibration = None if ids is None else Calibration(ids, "test")
    rows = measure(model, blocks=blocks, residence=InMemory(blocks.modules), calibration=calibration)
    found = {(row.kind, row.name): row for row in rows}
    assert len(found) == len(rows)
    return found


def inputs_of(model, ids) -> dict[str, torch.Tensor]:
    """What each linear layer reads in an ordinary forward, [.., I]."""
    seen: dict[str, torch.Tensor] = {}

    def watch(name):
        return lambda module, args: seen.__setitem__(name, args[0].detach().clone())

    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in linears]
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def agrees(row: Row, x: torch.Tensor, relative: float = 1e-4) -> bool:
    """Whether a row describes the numbers of x [.., C], in all that it says."""
    x = x.double().reshape(-1, x.shape[-1])
    mean, std = float(x.mean()), float(x.std(unbiased=False))
    deviation, summary = x - mean, row.summary
    absmax = x.abs().amax(0)
    wanted = {
        "mean": mean,
        "std": std,
        "low": float(x.min()),
        "high": float(x.max()),
        "absmax": float(x.abs().max()),
        "kurtosis": float(deviation.pow(4).mean() / std**4),
        "channel_spread": float(absmax.max() / absmax.quantile(0.5)),
    }
    same = [abs(getattr(summary, name) - value) <= relative * (abs(value) + std) for name, value in wanted.items()]
    return (
        summary.count == x.numel()
        and all(same)
        and torch.allclose(row.channel_low.double(), x.amin(0), rtol=relative, atol=relative * std)
        and torch.allclose(row.channel_high.double(), x.amax(0), rtol=relative, atol=relative * std)
    )


def loses(x: torch.Tensor, spec) -> float:
    """dB of signal to noise."""
    error = fake_quantize(x, spec) - x
    return 10 * math.log10(float(x.double().square().sum() / error.double().square().sum()))


@pytest.fixture(scope="module")
def trained(stories, tinystories_text):
    """A trained model, tokens for it, and its rows."""
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(stories).eval()
    ids = token_blocks(tinystories_text, AutoTokenizer.from_pretrained(stories), samples=6, seqlen=64)
    return model, ids, statistics(model, ids)


def test_weights_of_a_trained_model(trained):
    model, _, rows = trained
    weights = {name: m.weight for name, m in model.model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {name for kind, name in rows if kind == "W"} == {f"model.{name}" for name in weights}
    for name, weight in weights.items():
        row = rows["W", f"model.{name}"]
        assert agrees(row, weight.detach(), 1e-7)
        assert not agrees(row, weight.detach() * 1.001, 1e-7)
        assert row.block == int(name.split(".")[1])
        for bits in BITS:
            assert row.sqnr[bits] == pytest.approx(loses(weight.detach(), Scheme(w=bits).weight), abs=1e-4)


def test_inputs_of_a_trained_model(trained):
    model, ids, rows = trained
    seen = inputs_of(model, ids)
    read = {name: row for (kind, name), row in rows.items() if kind == "A"}
    assert {each for name, row in read.items() for each in (name, *row.readers)} == seen.keys() - {"lm_head"}
    others = inputs_of(model, (ids + 1) % 512)
    for name, row in read.items():
        assert agrees(row, seen[name])
        assert not agrees(row, others[name]), "other tokens give other inputs"
        for reader in row.readers:
            assert torch.equal(seen[reader], seen[name])
        spec = Scheme(w=8, a=4).activation
        assert row.sqnr[4] == pytest.approx(loses(seen[name].flatten(0, 1), spec), abs=0.01)


def test_keys_and_values_of_a_trained_model(trained):
    model, ids, rows = trained
    cache = DynamicCache()
    with torch.no_grad():
        model(ids, past_key_values=cache)
    for index, layer in enumerate(cache.layers):
        name = f"model.layers.{index}.self_attn"
        for kind, x in (("K", layer.keys), ("V", layer.values)):
            row, spec = rows[kind, name], Scheme(kv=4).kv_spec(x.shape[-1])
            heads = x.transpose(1, 2).flatten(2)
            assert agrees(row, heads)
            assert not agrees(row, heads.roll(1, -1)), "channels have their places"
            assert row.sqnr[4] == pytest.approx(loses(x, spec), abs=0.01)
        assert not agrees(rows["K", name], layer.values.transpose(1, 2).flatten(2))


def test_effects_on_a_trained_model(trained):
    """Noise in a layer's output follows from its channels; of the signal they say a little less."""
    model, ids, rows = trained
    seen = inputs_of(model, ids)
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.2.mlp.down_proj"):
        x, weight = seen[name].flatten(0, 1), model.get_submodule(name).weight.detach()
        read = [name, *(other for other in rows["A", name].readers)]
        weights = torch.cat([model.get_submodule(each).weight.detach() for each in read])
        by_kind = {
            "A": (weights, (fake_quantize(x, Scheme(w=8, a=4).activation) - x) @ weights.T),
            "W": (weight, x @ (fake_quantize(weight, Scheme(w=4).weight) - weight).T),
        }
        for kind, (matrix, noise) in by_kind.items():
            row, output = rows[kind, name], x @ matrix.T
            assert row.measure == "output_sqnr"
            apart = float((x.square().sum(0) * matrix.square().sum(0)).sum())  # the signal, were channels independent
            estimated = apart / 10 ** (row.effect[4] / 10)
            assert 10 * math.log10(estimated / float(noise.square().sum())) == pytest.approx(0, abs=1.5)
            true = 10 * math.log10(float(output.square().sum() / noise.square().sum()))
            assert -8 < row.effect[4] - true < 3, "rather too strict than too lax"
    assert {row.measure for (kind, _), row in rows.items() if kind == "K"} == {"logit_noise"}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_in_memory_are_seen_and_left_as_they_were(name):
    model, ids = float_model(name), prompt(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        logits = model(ids).logits
    rows = statistics(model, ids)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
    planned = make_plan(model, QllmConfig(w=4)).quantized()
    assert {key for kind, key in rows if kind == "W"} == {entry.name.removesuffix(".weight") for entry in planned}
    for key, x in inputs_of(model, ids).items():
        if ("A", key) in rows:
            assert agrees(rows["A", key], x)
    kinds = {kind for kind, _ in rows}
    assert kinds == ({"W", "A", "K", "V"} if MODELS[name].has_kv else {"W", "A"})
    if MODELS[name].has_kv:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids, past_key_values=cache)
        keys = [row for (kind, _), row in rows.items() if kind == "K"]
        values = [row for (kind, _), row in rows.items() if kind == "V"]
        for layer, key_row, value_row in zip(cache.layers, keys, values, strict=True):
            assert agrees(key_row, layer.keys.transpose(1, 2).flatten(2))
            assert agrees(value_row, layer.values.transpose(1, 2).flatten(2))
            latent = MODELS[name].keys_only
            assert key_row.measure == ("sqnr" if latent else "logit_noise")
            assert bool(value_row.effect) != latent, "the rotary part of a latent cache is never quantized"


def test_experts_read_the_tokens_that_are_sent_to_them():
    model, ids = float_model("mixtral"), prompt("mixtral")
    rows = statistics(model, ids)
    name = next(name for name, module in model.named_modules() if name.endswith("experts"))
    module, caught = model.get_submodule(name), {}
    handle = module.register_forward_pre_hook(lambda m, args: caught.update(x=args[0], chosen=args[1]))
    with torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    x, chosen = caught["x"], caught["chosen"]
    pairs = [(x[token], int(expert)) for token in range(len(x)) for expert in chosen[token]]
    inner = []
    for token, expert in pairs:
        gate, up = (module.gate_up_proj[expert] @ token).chunk(2)
        inner.append(torch.nn.functional.silu(gate) * up)
    first, second = rows["A", f"{name}.gate_up_proj"], rows["A", f"{name}.down_proj"]
    assert agrees(first, torch.stack([token for token, _ in pairs]).detach())
    assert agrees(second, torch.stack(inner).detach())
    assert not agrees(first, x.detach()), "a token counts for each expert that it goes to"
    assert agrees(rows["W", f"{name}.down_proj"], module.down_proj.detach(), 1e-7)


def test_reading_from_disk_gives_the_same(stories, trained):
    _, ids, in_memory = trained
    with offloaded(str(stories)) as source:
        residence = FromDisk(source.blocks.modules, source.weights, source.blocks.name)
        rows = measure(source.model, blocks=source.blocks, residence=residence, calibration=Calibration(ids, "x"))
        assert all(parameter.is_meta for block in source.blocks.modules for parameter in block.parameters())
        again = measure(source.model, blocks=source.blocks, residence=residence, calibration=Calibration(ids, "x"))
    for row, second in zip(rows, again, strict=True):
        other = in_memory[row.kind, row.name]
        assert row.summary == second.summary == other.summary
        assert row.effect == other.effect
    assert len(rows) == len(in_memory)


def test_16_bit_weights_stay_16_bit():
    """A block is in float32 while it is looked at; scales are rounded to the dtype that is stored."""
    model = float_model("llama").bfloat16()
    rows = statistics(model, prompt("llama"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    weight = model.model.layers[0].mlp.down_proj.weight.detach()
    row, spec = rows["W", "model.layers.0.mlp.down_proj"], Scheme(w=8).weight
    error = fake_quantize(weight, spec).float() - weight.float()
    stored = 10 * math.log10(float(weight.float().square().sum() / error.square().sum()))
    assert row.sqnr[8] == pytest.approx(stored, abs=1e-4)
    assert abs(stored - loses(weight.float(), spec)) > 0.1


def test_without_text_only_weights_are_seen():
    rows = statistics(float_model("llama"))
    assert {kind for kind, _ in rows} == {"W"}
    assert {row.measure for row in rows.values()} == {"sqnr"}
    assert all(row.effect == row.sqnr for row in rows.values())


def test_damaged_models_are_named_and_put_back():
    model = float_model("llama").bfloat16()
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 3] = float("nan")
    with pytest.raises(CalibrationError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        statistics(model, prompt("llama"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        weight[3, 3] = 0
        model.model.layers[0].post_attention_layernorm.weight[5] = float("inf")
    with pytest.raises(CalibrationError, match=r"input of model\.layers\.0\.mlp\.gate_proj holds infinite values"):
        statistics(model, prompt("llama"))


def test_what_cannot_be_measured():
    model = float_model("llama")
    with pytest.raises(CalibrationError, match="tokenizer of another model"):
        statistics(model, torch.full((1, 4), 9999))
    with pytest.raises(CalibrationError, match="model reads 512"):
        statistics(model, torch.ones(1, 513, dtype=torch.int64))
    packed = quantize_(model, "W4")
    blocks = Blocks(packed, "model.layers")
    with pytest.raises(ModelError, match="already quantized"):
        measure(packed, blocks=blocks, residence=InMemory(blocks.modules))
