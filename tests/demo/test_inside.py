"""Tensors of a model, and one of them before and after rounding."""

import math

import pytest
import torch

from qllm_hf.demo.host import make_host
from qllm_hf.demo.inside import histogram, layers, look, round_tensor, rows_html, tensor_names
from qllm_hf.demo.limits import Limits
from qllm_hf.demo.pictures import picture
from qllm_hf.errors import ConfigError, ModelError, SchemeError
from qllm_hf.loading import load_model
from qllm_hf.scheme import Spec
from qllm_hf.uniform import fake_quantize

NAME = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def host():
    return make_host()


def test_all_kinds_of_the_reference_model_are_seen(host):
    rows = look(host, "reference")
    assert {row.kind for row in rows} == {"W", "A", "K", "V"}
    assert NAME in tensor_names(rows)
    page = rows_html(rows)
    assert "at 2 bits all 35 break" in page
    assert "<svg" in picture(layers(rows, "reference"))


@pytest.mark.parametrize(("bits", "group"), [(2, 128), (4, 32), (8, -1)])
def test_rounding_is_that_of_the_library(host, bits, group):
    weight = dict(load_model("reference").named_parameters())[f"{NAME}.weight"].detach().float()
    after = fake_quantize(weight, Spec(bits, group))
    found = round_tensor(host, "reference", NAME, bits, group)
    noise = (after - weight).square().sum() / weight.square().sum()
    assert found.sqnr == pytest.approx(-10 * math.log10(noise), abs=1e-3)
    assert found.distinct == len(after.unique())
    assert found.before.sum() == found.after.sum() == weight.numel()
    assert not torch.equal(found.before, found.after)
    assert f"at {bits} bits" in picture(histogram(found))


def test_more_bits_leave_less_noise(host):
    levels = [round_tensor(host, "reference", NAME, bits).sqnr for bits in (2, 3, 4, 6, 8)]
    assert levels == sorted(levels)


@pytest.mark.parametrize(
    ("name", "bits", "error", "words"),
    [
        ("../../etc/passwd", 4, ConfigError, "no weight"),
        ("model.embed_tokens", 4, ConfigError, "no weight"),
        (NAME, 9, SchemeError, "2 to 8"),
    ],
)
def test_other_tensors_and_bits_are_refused(host, name, bits, error, words):
    with pytest.raises(error, match=words):
        round_tensor(host, "reference", name, bits)


def test_a_model_beyond_the_memory_is_refused():
    small = make_host(limits=Limits(memory_bytes=10**6))
    with pytest.raises(ModelError, match="this page has"):
        look(small, "reference")
