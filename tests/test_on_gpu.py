"""Packing and unpacking on a GPU: what the kernels there give is compared with torch before it is believed."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from qllm_hf import on_gpu
from qllm_hf.errors import QllmWarning
from qllm_hf.kv_rows import RowFormat
from qllm_hf.packed import PackedTensor, decode_reference, encode_reference
from qllm_hf.scheme import Spec
from qllm_hf.trials import Trials

SPEC = Spec(4, 32)


@pytest.fixture
def gpu(monkeypatch):
    """A CPU that passes for a GPU, with kernels that are right until `broken` names one."""
    state = SimpleNamespace(broken=None, calls=[], trials=Trials("kernels for GPUs", "Leave them out."))

    def kernel(name, right):
        def run(*arguments):
            state.calls.append(name)
            found = right(*arguments)
            if state.broken == name:
                parts = found if isinstance(found, tuple) else (found,)
                parts[0].copy_(parts[0].roll(1, -1))  # in place, as a kernel that writes into a cache
            return found

        monkeypatch.setattr(on_gpu, name, run)

    def encode_rows(x, spec, words, rows=None):
        made = RowFormat(spec, x.shape[-1], x.dtype).encode_reference(x)
        return made if rows is None else rows.copy_(made)

    monkeypatch.setattr(on_gpu, "DEVICES", {"cpu"})
    monkeypatch.setattr(on_gpu, "TRIALS", state.trials)
    kernel("encode", lambda x, spec, dtype: tuple(encode_reference(x, spec, dtype)[:3]))
    kernel("decode", lambda *parts: decode_reference(PackedTensor(*parts[:5]), parts[5]))
    kernel("encode_rows", encode_rows)
    kernel("decode_rows", lambda rows, spec, *kind: RowFormat(spec, *kind).decode_reference(rows))
    return state


FORMAT = RowFormat(SPEC, 64, torch.float32)
ROTATED = RowFormat(SPEC, 64, torch.float32, rotated=True)


def into_a_part(x, form):
    rows = torch.zeros(2, 3, x.shape[2] + 4, form.words, dtype=torch.int16)
    form.encode_into(x, rows[:, :, 2:-2])
    assert not rows[:, :, :2].any()
    return rows[:, :, 2:-2]


WORK = {
    "encode": (lambda x, form: PackedTensor.encode(x, SPEC).words, lambda x, form: encode_reference(x, SPEC).words),
    "decode": (
        lambda x, form: encode_reference(x, SPEC).decode(),
        lambda x, form: decode_reference(encode_reference(x, SPEC)),
    ),
    "encode_rows": (lambda x, form: form.encode(x), lambda x, form: form.encode_reference(x)),
    "encode_rows into": (into_a_part, lambda x, form: form.encode_reference(x)),
    "decode_rows": (
        lambda x, form: form.decode(form.encode_reference(x)),
        lambda x, form: form.decode_reference(form.encode_reference(x)),
    ),
}


@pytest.mark.parametrize("tokens", [3, 300], ids=["few", "more than are compared"])
@pytest.mark.parametrize("form", [FORMAT, ROTATED], ids=["", "rotated"])
@pytest.mark.parametrize("work", WORK)
def test_what_is_right_is_used(gpu, work, form, tokens):
    ours, reference = WORK[work]
    x = torch.randn(2, 3, tokens, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert ours(x, form).equal(reference(x, form))
    assert gpu.calls == [work.split()[0]] * 2
    assert len(gpu.trials.passed) == 1


@pytest.mark.parametrize("form", [FORMAT, ROTATED], ids=["", "rotated"])
@pytest.mark.parametrize("work", WORK)
def test_what_is_wrong_is_not(gpu, work, form):
    ours, reference = WORK[work]
    gpu.broken = work.split()[0]
    x = torch.randn(2, 3, 5, 64)
    with pytest.warns(QllmWarning, match=r"kernels for GPUs are not used for .*off by up to.* Leave them out"):
        assert ours(x, form).equal(reference(x, form))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ours(x, form).equal(reference(x, form))
    assert gpu.calls == [gpu.broken], "it was tried once"


def test_graphs_that_are_compiled_do_not_ask(gpu):
    x = torch.randn(1, 2, 3, 64)
    compiled = torch.compile(lambda x: FORMAT.decode(FORMAT.encode(x)), fullgraph=True, backend="aot_eager")
    assert compiled(x).equal(FORMAT.decode_reference(FORMAT.encode_reference(x)))
    assert not gpu.calls
