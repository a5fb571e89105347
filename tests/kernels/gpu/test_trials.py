"""Products and attention are compared with torch the first time: what is wrong or fails is left out, with a warning."""

import pytest
import torch

from qllm_hf import attention, on_gpu, ops
from qllm_hf.attention import KvRows, reference
from qllm_hf.attention import Request as Attention
from qllm_hf.attention import gpu as attending
from qllm_hf.errors import QllmWarning
from qllm_hf.kv_rows import RowFormat
from qllm_hf.ops import experts
from qllm_hf.ops import gpu as operation
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import Spec
from qllm_hf.trials import Trials

if not operation.INTERPRETED:
    pytest.skip("runs in a process of its own, with TRITON_INTERPRET=1: `make test-gpu`", allow_module_level=True)

A8 = Spec(8, -1)


@pytest.fixture(autouse=True)
def trials(monkeypatch):
    """A record of its own for each test."""
    fresh = Trials("kernels for GPUs", "")
    for module in (on_gpu, operation, experts, attending):
        monkeypatch.setattr(module, "TRIALS", fresh)
    return fresh


def products(activation):
    weight = PackedTensor.encode(torch.randn(24, 160, generator=torch.Generator().manual_seed(1)).half(), Spec(4, 32))
    pairs = [(weight, None), (weight.part(slice(0, 5)), torch.ones(5).half())]
    x = torch.randn(3, 160, generator=torch.Generator().manual_seed(2)).half()
    with ops.prefer(operation.INTERPRETER):
        return torch.cat(ops.linear_many(x, pairs, activation), -1)


def experts_(activation):
    weight = PackedTensor.encode(torch.randn(4, 9, 64, generator=torch.Generator().manual_seed(1)).half(), Spec(4, 32))
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(2)).half()
    with ops.prefer(operation.INTERPRETER):
        return ops.expert_product(x, torch.tensor([0, 3, 3, 9, -1, 2]), weight, activation)


def attention_(used):
    form = RowFormat(Spec(4, 32), 64, torch.float16)
    generator = torch.Generator().manual_seed(1)
    rows = [form.encode(torch.randn(2, 2, 40, 64, generator=generator).half()) for _ in range(2)]
    mask = (torch.arange(40) < 21).repeat(2, 1, 3, 1)
    mask[0, :, 0] = False  # sees nothing
    held = torch.tensor(21) if used else None
    if used:
        for each in rows:
            each[:, :, 21:] = -1  # scales that are no numbers
    query = torch.randn(2, 4, 3, 64, generator=generator).half()
    keys, values = (KvRows(each, form, held) for each in rows)
    return attending.attend(Attention(query, keys, values, mask, False, 0.1))


WORK = {
    "products": (products, None, operation, "_multiplied"),
    "products of integers": (products, A8, operation, "_multiplied"),
    "experts": (experts_, None, operation, "expert_product"),
    "experts of integers": (experts_, A8, operation, "expert_product"),
    "attention": (attention_, False, attending, "_attend"),
    "attention with room": (attention_, True, attending, "_attend"),
}


@pytest.mark.parametrize("work", WORK)
def test_what_is_right_passes(work, trials):
    run, argument, *_ = WORK[work]
    found = run(argument)
    assert len(trials.passed) == 1
    assert not trials.failed
    assert run(argument).equal(found)
    assert found.isfinite().all()


@pytest.mark.parametrize("fault", ["a number", "a failure"])
@pytest.mark.parametrize("work", [name for name in WORK if name != "attention with room"])
def test_what_is_wrong_is_left_out(work, fault, trials, monkeypatch):
    run, argument, module, name = WORK[work]
    right, kernel, tried = run(argument), getattr(module, name), []
    trials.passed.clear()

    def broken(*arguments):
        tried.append(1)
        if fault == "a failure":
            raise RuntimeError("ptxas fatal")
        found = kernel(*arguments)
        last = found[-1] if isinstance(found, list) else found
        last[(-1,) * last.dim()] += 1
        return found

    monkeypatch.setattr(module, name, broken)
    with pytest.warns(QllmWarning, match="ptxas fatal" if fault == "a failure" else "off by up to"):
        found = run(argument)
    torch.testing.assert_close(found, right, atol=0.02, rtol=0.01)
    assert len(trials.failed) == 1
    torch.testing.assert_close(run(argument), right, atol=0.02, rtol=0.01)
    assert len(tried) == 1


def test_other_shapes_are_another_kind(trials):
    weight = PackedTensor.encode(torch.randn(24, 64).half(), Spec(4, 32))
    with ops.prefer(operation.INTERPRETER):
        for tokens in (1, 2, 3, 4):
            ops.linear(torch.randn(tokens, 64).half(), weight, None, None)
    assert len(trials.passed) == 3, "2 and 3 tokens are cut alike"


def test_attention_of_the_reference_is_what_is_wanted():
    """The comparison is with the reference: it is not the kernel's own word."""
    assert attending.reference is reference
    assert attention.ATTENTION[-1].run is reference.attend
