"""The float weights are read once, and every scheme gets the model that loading it alone would give."""

import pytest
import torch

from qllm_hf import QllmConfig
from qllm_hf.loading import load_model
from qllm_hf.sweep import models as module
from qllm_hf.sweep.models import Models, free_memory, twin

IDS = torch.randint(0, 500, (2, 24), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_weights_are_read_once(stories):
    models = Models(str(stories), keep=True)
    before = logits(models.get(None))
    for scheme in ("W4KV4", "W8A8", "KV2", "W2"):
        config = QllmConfig.from_scheme(scheme)
        found, alone = logits(models.get(config)), logits(load_model(str(stories), QllmConfig.from_scheme(scheme)))
        assert torch.equal(found, alone), scheme
        assert not torch.equal(found, before), scheme
    assert torch.equal(logits(models.get(None)), before), "the float model is as it was"
    assert models.reads == 1


def test_without_room_they_are_read_each_time(stories):
    models = Models(str(stories), keep=False)
    first = logits(models.get(QllmConfig(w=4)))
    assert torch.equal(first, logits(models.get(QllmConfig(w=4))))
    assert models.reads == 2


def test_room_is_looked_at(stories, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device_map: 1_000_000)
    assert not Models(str(stories)).keeps, "260,032 weights of 4 bytes, 2.2 times"
    monkeypatch.setattr(module, "free_memory", lambda device_map: 10_000_000)
    assert Models(str(stories)).keeps


def test_free_memory_is_that_of_this_machine():
    assert 10**8 < free_memory(None) < 10**14


def test_method_leaves_the_float_model_alone(stories):
    """AWQ changes norms: on shared weights the next scheme would start from them."""
    models = Models(str(stories), keep=True)
    before = logits(models.get(None))
    calibration = torch.randint(0, 500, (4, 32), generator=torch.Generator().manual_seed(2))
    models.get(QllmConfig(w=3, w_group_size=8, method="awq", calibration=calibration))
    assert torch.equal(logits(models.get(None)), before)
    assert models.reads == 3


def test_config_is_not_changed_by_use(stories):
    config = QllmConfig(w=4)
    kept = config.to_dict()
    Models(str(stories), keep=True).get(config)
    assert config.to_dict() == kept


def test_twin_shares_weights_and_no_modules(stories):
    model = load_model(str(stories))
    other = twin(model)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert not {id(module) for module in model.modules()} & {id(module) for module in other.modules()}
    assert other.get_output_embeddings().weight is other.get_input_embeddings().weight, "ties hold"


@pytest.mark.parametrize("scheme", ["W4", "KV4"])
def test_float_model_writes_the_same_after_a_twin_was_quantized(stories, scheme):
    models = Models(str(stories), keep=True)
    model = models.get(None)
    expected = model.generate(IDS[:1, :4], max_new_tokens=12, do_sample=False)
    models.get(QllmConfig.from_scheme(scheme))
    assert torch.equal(models.get(None).generate(IDS[:1, :4], max_new_tokens=12, do_sample=False), expected)
