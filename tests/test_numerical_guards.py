"""No silent wrong number: bad numbers, bad shapes and odd settings, on every implementation and through whole models.

`scripts/fuzz_numbers.py` draws cases at random and compares every implementation with float64; a share of it runs here,
and so do faults that it has to find. What it found once has a test of its own below.
"""

import importlib
import warnings

import pytest
import torch
from linear_reference import exact
from tiny_models import float_model, prompt
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from qllm_hf import QllmConfig, quantize_
from qllm_hf.attention import KvRows, Request, native, reference
from qllm_hf.errors import ModelError, QllmWarning
from qllm_hf.kv_rows import RowFormat
from qllm_hf.nn import PackedLinear
from qllm_hf.ops import LINEAR
from qllm_hf.ops.registry import Request as LinearRequest
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import PER_ROW, Spec
from qllm_kernels import cpu

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def fuzz():
    return importlib.import_module("fuzz_numbers")


def on_each_level(run):
    """What run() gives on each level of the CPU kernels; once, where there is no library."""
    if cpu.missing():
        return {"": run()}
    library, found = cpu.library(), {}
    before = library.level
    for level in library.levels:
        library.set_level(level)
        found[level] = run()
    library.set_level(before)
    return found


# The campaign.


def test_a_share_of_the_campaign(fuzz):
    found = fuzz.campaign(fuzz.some_cases(64, seed=2026))
    assert [item for item in found if item.outcome.fault] == []
    assert {item.case.kind for item in found} == set(fuzz.KINDS)


PLANTED = {
    "products": "linear",
    "hidden": "attention",
    "attention": "attention",
    "unpacking": "weights",
    "rows": "rows",
    "codes": "weights",
}


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_faults_are_found(fuzz, plant):
    assert PLANTED.keys() == fuzz.PLANTS.keys()
    if cpu.missing() and plant != "codes":
        pytest.skip("the fault is in the kernels")
    cases = fuzz.some_cases(12, seed=1, only=PLANTED[plant])
    assert [item for item in fuzz.campaign(cases, plant) if item.outcome.fault]


def test_its_table_counts_what_was_compared(fuzz):
    text = fuzz.table(fuzz.campaign(fuzz.some_cases(2, seed=0, only="weights")))
    assert text.splitlines()[-1].split()[:3] == ["all", "2", str(len(fuzz.campaign(fuzz.some_cases(2, 0, "weights"))))]


# Long rows.


@pytest.mark.parametrize(("tokens", "length"), [(2, 2**20), (12, 2**17 + 31)])
def test_sums_over_long_rows_do_not_overflow(tokens, length):
    """8 bits times 8 bits with the largest codes: 2^20 * 255^2 is above 2^35."""
    x, weight = torch.ones(tokens, length), torch.ones(2, length)
    x[1], weight[1] = -1, -1
    x[0, 0] = weight[0, 0] = 0
    packed, activation = PackedTensor.encode(weight, Spec(8, PER_ROW)), Spec(8, PER_ROW)
    wanted = exact(x, packed, None, activation)
    compared = 0
    for row in LINEAR:
        if row.refuses(LinearRequest("cpu", x.dtype, packed.spec, activation)) or row.name == "interpreter":
            continue
        run = lambda row=row: row.run(x, packed, None, activation)  # noqa: E731
        for level, y in (on_each_level(run) if row.name == "cpu" else {"": run()}).items():
            off = (y.double() - wanted.y).abs() / wanted.magnitudes
            assert off.max() < 1e-5, (row.name, level)
            compared += 1
    assert compared >= 2


# What is not finite.


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dim", [3, 8, 64])
def test_attention_does_not_drop_a_key_that_is_not_finite(dim, value):
    keys, values, query = torch.randn(1, 2, 17, dim), torch.randn(1, 2, 17, dim), torch.rand(1, 2, 1, dim) + 1
    keys[0, 0, 5, 2] = value
    form = RowFormat(Spec(8, PER_ROW, symmetric=True), dim, torch.float32)

    def run():
        request = Request(query, *(KvRows(form.encode(x), form) for x in (keys, values)), None, False, dim**-0.5)
        return [each.attend(request) for each in (native, reference) if each is reference or not cpu.missing()]

    for level, results in on_each_level(run).items():
        for y in results:
            assert y[0, 0].isnan().all(), level
            assert y[0, 1].isfinite().all(), level


@pytest.mark.parametrize("value", [NAN, -INF])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("scheme", ["KV4", "W4KV8", "W8A8KV4"])
def test_a_sequence_that_is_not_finite_leaves_the_others_alone(scheme, use_cache, value):
    model, ids = quantize_(float_model("llama"), scheme, w_group_size=32), prompt("llama")
    hidden = model.get_input_embeddings()(ids).detach()
    with torch.no_grad():
        sound = model(inputs_embeds=hidden, use_cache=use_cache).logits
        hidden[0, 4, 9] = value
        logits = model(inputs_embeds=hidden, use_cache=use_cache).logits
    assert logits[0, 4:].isnan().all()
    torch.testing.assert_close(logits[1], sound[1])


@pytest.mark.parametrize(("value", "said"), [(NAN, "are NaN"), (INF, "are infinite"), (-INF, "are infinite")])
def test_a_float_weight_that_is_not_finite_is_named_with_its_place(value, said, tmp_path):
    model = float_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    model.save_pretrained(tmp_path)
    expected = rf"model\.layers\.1\.mlp\.up_proj\.weight: 1 of 5632 numbers {said}, the first at \[3, 5\]"
    with pytest.raises(ModelError, match=expected):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QllmConfig(w=4))
    with pytest.raises(ModelError, match=expected):
        quantize_(model, "W4")


def test_a_group_that_is_wider_than_its_dtype():
    model = float_model("llama").to(torch.bfloat16)
    limit = torch.finfo(torch.bfloat16).max
    model.model.layers[0].mlp.up_proj.weight.data[2, 33:35] = torch.tensor([limit, -limit])
    with pytest.raises(ModelError, match=r"group 1 of row \[2\] is wider than torch\.bfloat16 can express"):
        quantize_(model, "W4", w_group_size=32)


# Numbers that are too small.


def test_a_weight_of_which_nothing_is_left_is_said(tmp_path):
    model = float_model("llama")
    model.model.layers[0].mlp.up_proj.weight.data.mul_(1e-9)
    model.save_pretrained(tmp_path)
    said = r"all values of model\.layers\.0\.mlp\.up_proj\.weight are within 1e-05 .* 100% of them became 0"
    with pytest.warns(QllmWarning, match=said):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QllmConfig(w=4))
    with pytest.warns(QllmWarning, match=said):
        quantize_(model, "W4")


def test_a_weight_of_zeros_needs_no_warning():
    model = float_model("llama")
    model.model.layers[0].mlp.up_proj.weight.data.zero_()
    model.model.layers[0].mlp.down_proj.weight.data[3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_(model, "W4")
    assert not model.model.layers[0].mlp.up_proj.weight.any()
    assert not model.model.layers[0].mlp.down_proj.weight[3].any()


# Inputs of another kind.


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=["no sequences", "no tokens"])
def test_nothing_is_given(shape):
    """What transformers makes of it, packed or not; layers and caches of our own give nothing back."""

    def outcome(run):
        try:
            return run().shape
        except Exception as error:
            return type(error)

    ids = torch.zeros(shape, dtype=torch.long)
    plain, model = float_model("gpt2"), quantize_(float_model("gpt2"), "W4A8KV4", w_group_size=32)
    for run in (
        lambda m: m(ids).logits,
        lambda m: m(ids, use_cache=False).logits,
        lambda m: m.generate(ids, max_new_tokens=2, do_sample=False),
    ):
        assert outcome(lambda run=run: run(plain)) == outcome(lambda run=run: run(model))
    layer = model.transformer.h[0].mlp.c_fc
    assert layer(torch.zeros(*shape, 64)).shape == (*shape, 256)
    for cache in (DynamicCache(), StaticCache(config=model.config, max_cache_len=8)):
        from qllm_hf.cache import kv_format_of, quantize_cache_
        from qllm_hf.scheme import Scheme

        quantize_cache_(cache, kv_format_of(model.config, Scheme(kv=4)))
        empty = torch.zeros(shape[0], 4, shape[1], 16)
        keys, values = cache.update(empty, empty, 0)
        assert keys.shape[0] == values.shape[0] == shape[0]


# Whole models.


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("scheme", ["W4KV4", "W8A8KV8"])
def test_a_row_of_padding_is_as_in_the_float_model(scheme, static):
    """Left and right padding, and a sequence that is nothing else: no NaN, and nothing in the rows beside it."""
    model, ids = quantize_(float_model("llama"), scheme, w_group_size=32), prompt("llama", batch=4)[:, :8]
    mask = torch.ones_like(ids)
    mask[1], mask[2, :3], mask[3, 5:] = 0, 0, 0

    def logits(rows):
        size = {"max_cache_len": 16, "max_batch_size": len(rows)}
        cache = StaticCache(config=model.config, **size) if static else DynamicCache(config=model.config)
        with torch.no_grad():
            return model(ids[rows], attention_mask=mask[rows], past_key_values=cache).logits

    together = logits([0, 1, 2, 3])
    assert together.isfinite().all()
    for row in (0, 2, 3):
        seen = mask[row].bool()
        torch.testing.assert_close(together[row][seen], logits([row])[0][seen], rtol=1e-4, atol=2e-4)
    written = model.generate(ids[:3], attention_mask=mask[:3], max_new_tokens=3, do_sample=False)
    alone = model.generate(ids[:1], attention_mask=mask[:1], max_new_tokens=3, do_sample=False)
    assert written[0].equal(alone[0])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", [False, True])
def test_padded_vocabularies(head, tied):
    """Rows of zeros give logits of 0 to the last bit, packed or not."""
    plain, ids = float_model("llama"), prompt("llama")
    if tied:
        plain.config.tie_word_embeddings = True
        plain.tie_weights()
    plain.resize_token_embeddings(256, pad_to_multiple_of=100)
    with torch.no_grad():
        plain.get_output_embeddings().weight[256:] = 0
        wanted = plain(ids).logits
        logits = quantize_(plain, "W8", w_group_size=32, quantize_head=head)(ids).logits
    assert logits.shape[-1] == 300
    assert not logits[..., 256:].any()
    assert (logits - wanted).abs().max() < 0.1


def _default_dtype(dtype):
    return lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32)


SETTINGS = {
    "default float64": _default_dtype(torch.float64),
    "default bfloat16": _default_dtype(torch.bfloat16),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "flushed denormals": (lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)),
    "two threads": (lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(1)),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_a_process_change_nothing(setting):
    ids, (begin, end) = prompt("llama"), SETTINGS[setting]
    for scheme in ("W4KV4", "W8A8KV8"):
        model = quantize_(float_model("llama"), scheme, w_group_size=32)
        with torch.inference_mode():
            wanted = model(ids).logits
            begin()
            try:
                found = model(ids).logits
                again = quantize_(float_model("llama"), scheme, w_group_size=32)(ids).logits
            finally:
                end()
        assert found.dtype == torch.float32
        for logits in (found, again):
            torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


def test_a_layer_of_one_number():
    """One input, one output, a group that is longer than the row."""
    layer = PackedLinear(1, 1, bias=False, spec=Spec(4, 128), activation=Spec(8, PER_ROW))
    layer.assign_packed("weight", PackedTensor.encode(torch.tensor([[-3.0]]), Spec(4, 128)))
    torch.testing.assert_close(layer(torch.tensor([[2.0], [0.0], [-0.0]])), torch.tensor([[-6.0], [0.0], [0.0]]))
