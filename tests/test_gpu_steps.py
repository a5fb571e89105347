"""benchmarks/gpu_steps.py verifies what it times: on a processor two small layers run, and wrong logits are found."""

from dataclasses import replace

import gpu_steps
import pytest
import torch
from gpu_steps import FLOAT, TINY, Case, with_ratios

from qllm_hf import attention
from qllm_hf.attention import graph, registry
from qllm_hf.cache import cache_nbytes

pytestmark = pytest.mark.slow


def test_small_models_are_verified(capsys):
    assert gpu_steps.main(["--tiny", "--only", "W4KV4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 rows, 0 did not run or were wrong"
    assert [line.split(" batch")[0] for line in lines[:-1]] == ["scheme FP16", "scheme W4KV4"]
    assert all("verified, not timed" in line and " ms " not in line for line in lines[:-1])


@pytest.mark.skipif(not graph.IS_TRACEABLE, reason="graphs of this torch decode, whatever the table says")
def test_wrong_logits_are_found(capsys, monkeypatch):
    def wrong(request):
        return attention.ATTENTION[-1].run(request).flip(-1)

    rows = [replace(row, run=wrong) for row in attention.ATTENTION[:-1]]
    monkeypatch.setattr(registry, "ATTENTION", (*rows, attention.ATTENTION[-1]))
    assert gpu_steps.main(["--tiny", "--only", "W4KV4"]) == 1
    assert "wrong: logits are off by" in capsys.readouterr().out


@torch.no_grad()
def test_caches_are_filled_and_packed():
    sizes = {}
    for scheme in (FLOAT, "KV4"):
        model = gpu_steps.make(scheme, torch.device("cpu"), TINY)
        cache = gpu_steps.fresh_cache(model, scheme, 2, 40, 8)
        assert cache.get_seq_length() == 40
        sizes[scheme] = cache_nbytes(cache)
        assert model(torch.zeros(2, 1, dtype=torch.long), past_key_values=cache).logits.isfinite().all()
    assert sizes["KV4"] * 2 < sizes[FLOAT]


def test_ratios_are_to_the_same_batch_and_context():
    rows = [
        {**Case(scheme, batch, 128)._asdict(), "ms": ms}
        for scheme, batch, ms in (
            (FLOAT, 1, "4.0"),
            (FLOAT, 8, "6.0"),
            ("W4", 1, "1.0"),
            ("W4", 8, "4.0"),
            ("W4", 9, "1"),
        )
    ]
    assert [row["ratio"] for row in with_ratios(rows)] == ["1.000", "1.000", "4.000", "1.500", ""]


def test_nothing_to_measure(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_steps.main([]) == 1
    assert "torch finds no GPU (--tiny verifies without one)" in capsys.readouterr().err
