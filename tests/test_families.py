"""Each family under each scheme: what is packed computes what its float simulation computes, also after saving."""

import math

import pytest
import torch
from family_checks import COVERAGE, SCHEMES, check_scheme, parse
from simulated_models import quantizable
from tiny_models import MODELS, float_model, on_one_thread, prompt
from transformers import __version__

from qllm_hf import QllmConfig, quantize_
from qllm_hf.families import FAMILIES
from qllm_hf.native import is_there
from qllm_hf.ops import prefer

_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)

# One of each mechanism: plain, own Linear class, Conv1D, windows, experts of both orientations, latents, states.
CORE = ("llama", "falcon", "gpt2", "gemma2", "mixtral", "gpt_oss", "deepseek_v3", "jamba", "mamba", "rwkv")
CORE_SCHEMES = ("W4", "KV4", "W4KV8", "W8A8KV8")


def _cells():
    for name in MODELS:
        for scheme in SCHEMES:
            marks = [pytest.mark.oldest] if name in CORE and scheme in CORE_SCHEMES else []
            yield pytest.param(name, scheme, marks=marks, id=f"{name}-{scheme}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Float checkpoints, shared by all schemes of a family."""
    return tmp_path_factory.mktemp("families")


@pytest.mark.parametrize(("name", "scheme"), [*_cells()])
def test_family_under_scheme(name, scheme, folder):
    parsed, tiny = parse(scheme), MODELS[name]
    with prefer("dequantize"):  # what differs with a kernel is the order of sums, and roundings that this moves
        result = check_scheme(name, scheme, folder)
    # Both do the same operations; where one holds a matrix in another order, a sum of 64 terms may round otherwise.
    tolerance = 64 * torch.finfo(torch.float32).eps * result.largest
    assert result.difference <= tolerance
    assert result.reload == 0
    assert result.in_memory == 0
    assert result.dequantized <= tolerance
    assert result.unknown_keys == ()
    assert result.files > 1
    if parsed.weight is not None:
        assert result.coverage >= COVERAGE.get(name, (1.0, ""))[0]
        assert result.uncovered == ()
    has_kv_bits = parsed.kv_spec(1) is not None
    assert (result.kv_effect > 0) == (has_kv_bits and tiny.has_kv)
    assert result.says_no_kv == (has_kv_bits and not tiny.has_kv)


@pytest.mark.parametrize("name", MODELS)
def test_kernels_change_the_last_digits_only(name):
    model, ids = float_model(name), prompt(name)
    quantize_(model, QllmConfig(w=4))
    with torch.no_grad():
        usual = model(ids).logits
        with prefer("dequantize"):
            plain = model(ids).logits
    # states multiply an error by a number that they make of their input; it is 1e-6 in most models
    assert (usual - plain).abs().max() <= 1e-3 * plain.abs().max()
    assert not torch.equal(usual, plain) or not is_there()


@pytest.mark.parametrize("name", MODELS)
def test_tiny_model_says_something(name):
    """Logits of one value or one token would hide differences."""
    model, ids = float_model(name), prompt(name)
    with torch.no_grad():
        logits = model(ids).logits
    assert 0.3 < logits.std() < 10
    assert logits.argmax(-1).unique().numel() > 10
    assert math.isfinite(logits.sum())
    window = getattr(model.config, "sliding_window", None)
    assert window is None or window < ids.shape[1]


@pytest.mark.parametrize("name", MODELS)
def test_tables_agree(name):
    """What the package knows about a family and what these tests assume."""
    known = FAMILIES.get(MODELS[name].model_type)
    kind = known.kv if known else "kv"
    assert (kind != "none", kind == "keys") == (MODELS[name].has_kv, MODELS[name].keys_only)


def test_experts_are_most_of_a_mixture():
    """They are no nn.Linear: a quantizer that looks only for those would miss them."""
    model = float_model("mixtral")
    fused = sum(p.numel() for name, m in quantizable(model) if name.endswith("experts") for p in m.parameters())
    plain = sum(p.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) for p in m.parameters())
    assert fused > 2 * plain, f"transformers {__version__} keeps experts otherwise than these tests assume"
