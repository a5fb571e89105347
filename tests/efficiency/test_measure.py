"""A run makes as many tokens as asked, and what is wrong is not timed."""

import pytest
import torch
from tiny_models import float_model

import qllm_hf
from qllm_hf.efficiency import measure
from qllm_hf.efficiency.cells import Case
from qllm_hf.efficiency.measure import check_model, correlation, prompts, run_once
from qllm_hf.errors import ModelError
from qllm_hf.ops import registry

FAMILIES = ("llama", "opt", "mixtral", "gemma3_text", "deepseek_v3", "mamba", "jamba", "rwkv", "mpt")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_of_each_family(name):
    model = float_model(name)
    case = Case(2, 10, 5)
    run = run_once(model, prompts(model, case), case)
    assert 0 < run.prefill < run.total
    assert run.decode > 0
    assert run.prefill + 4 * run.decode <= run.total
    assert (run.kv_bytes is None) == (name == "rwkv")
    check_model(model, "FP16")


@pytest.mark.parametrize("scheme", ["W8", "W4", "W8A8", "W4A8", "KV8", "KV4", "W4KV4", "KV2", "W2"])
def test_packed_models_are_right(stories, scheme):
    from qllm_hf.loading import load_model

    check_model(load_model(str(stories), qllm_hf.QllmConfig.from_scheme(scheme)), scheme)


def test_an_end_token_ends_nothing():
    model = float_model("llama")
    case = Case(1, 6, 8)
    ids = prompts(model, case)
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    model.generation_config.eos_token_id = int(plain[0, 7])  # what it would write as its second token
    assert model.generate(ids, max_new_tokens=8, do_sample=False).shape[1] < 14
    assert run_once(model, ids, case).total > 0


def test_another_number_of_tokens_is_an_error(monkeypatch):
    model = float_model("llama")
    case, real = Case(1, 6, 4), measure._generate
    monkeypatch.setattr(measure, "_generate", lambda m, ids, tokens, **options: real(m, ids, tokens - 1, **options))
    with pytest.raises(ModelError, match=r"token ids \(1, 9\) in 3 steps, not \(1, 10\) in 4"):
        run_once(model, prompts(model, case), case)


def test_prompts_are_the_same_each_time_and_differ_by_case():
    model = float_model("llama")
    assert torch.equal(prompts(model, Case(2, 9, 2)), prompts(model, Case(2, 9, 7)))
    assert prompts(model, Case(2, 9, 2)).shape == (2, 9)
    assert not torch.equal(prompts(model, Case(1, 9, 2))[0], prompts(model, Case(2, 9, 2))[0])


def test_numbers_that_are_not_finite_are_not_timed():
    model = float_model("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"W4: the logits of decoding are not finite"):
        check_model(model, "W4")


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    """An implementation that is fast because it leaves something out."""

    def wrong(x, weight, bias, activation):
        return torch.roll(registry.LINEAR[-1].run(x, weight, bias, activation), 1, -1)

    model = qllm_hf.quantize_(float_model("llama"), "W8")
    check_model(model, "W8")
    broken = registry.Implementation("broken", "wrong", wrong, lambda request: None)
    monkeypatch.setattr(registry, "LINEAR", (broken, *registry.LINEAR))
    with pytest.raises(ModelError, match=r"correlation of -?0\.\d+ with those of the implementation 'dequantize'"):
        check_model(model, "W8")


def test_a_cache_that_loses_what_it_holds_is_not_timed(monkeypatch):
    from qllm_hf.cache_layers import PackedLayer

    model = qllm_hf.quantize_(float_model("llama"), "KV8")
    check_model(model, "KV8")
    name = "PackedDynamicLayer"
    (layer,) = (cls for cls in PackedLayer.__subclasses__() if cls.__name__ == name)
    update = layer.update

    def forget(self, keys, values, *args, **kwargs):
        keys, values = update(self, keys, values, *args, **kwargs)
        if keys.shape[-2] > 12:  # once it decodes
            return keys.roll(1, -2), values * -1
        return keys, values

    monkeypatch.setattr(layer, "update", forget)
    with pytest.raises(ModelError, match="with those of one forward over the same text"):
        check_model(model, "KV8")


def test_correlation():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert correlation(x, 3 * x + 1) == pytest.approx(1)
    assert correlation(x, -x) == pytest.approx(-1)
    assert abs(correlation(x, x.roll(1))) < 0.3
    assert correlation(torch.ones(3), torch.ones(3)) == 1
    assert correlation(torch.ones(3), x[:3]) == 0
