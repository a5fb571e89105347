"""The implementations of attention over packed rows mean the same, and the choice among them says why."""

from dataclasses import replace

import pytest
import torch

from qllm_hf.attention import ATTENTION, KvRows, Request, attend, blocks, prefer, resolve
from qllm_hf.errors import ConfigError
from qllm_hf.kv_rows import RowFormat
from qllm_hf.scheme import Spec

DIM = 64


def request_of(tokens, count, *, group=2, mask=None, causal=False, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(tokens)
    form = RowFormat(Spec(4, DIM, False), DIM, dtype)
    keys, values = (
        KvRows(form.encode(torch.randn(2, 2, tokens, DIM, generator=generator).to(dtype)), form) for _ in range(2)
    )
    query = torch.randn(2, 2 * group, count, DIM, generator=generator).to(dtype)
    return Request(query, keys, values, mask, causal, DIM**-0.5, **options)


def padded(tokens, count, padding):
    """The first sequence has `padding` tokens in front, the queries are the last tokens: flags [B, 1, Tq, T]."""
    keys, queries = torch.arange(tokens)[None], torch.arange(tokens - count, tokens)[:, None]
    return torch.stack([(keys <= queries) & (keys >= start) for start in (padding, 0)])[:, None]


@pytest.mark.parametrize("part", [3, 16, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_are_the_whole(monkeypatch, part, dtype):
    monkeypatch.setattr(blocks, "PART", part)
    reference = ATTENTION[-1]
    numbers = torch.randn(1, 4, 5, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    for request in (
        request_of(40, 5, dtype=dtype),
        request_of(40, 40, causal=True, dtype=dtype),
        request_of(40, 7, causal=True, dtype=dtype),
        request_of(40, 5, mask=padded(40, 5, 37), dtype=dtype),
        request_of(40, 40, mask=padded(40, 40, 20), dtype=dtype),
        request_of(40, 5, mask=numbers, dtype=dtype),
    ):
        assert blocks.refuses(request) is None
        tolerance = {} if dtype == torch.float32 else {"atol": 4e-3, "rtol": 0.02}
        torch.testing.assert_close(blocks.attend(request), reference.run(request), **tolerance)


def test_a_lost_part_would_be_noticed(monkeypatch):
    monkeypatch.setattr(blocks, "PART", 16)
    request = request_of(40, 5)
    shorter = replace(request, keys=request.keys.part(0, 32), values=request.values.part(0, 32))
    assert not torch.allclose(blocks.attend(shorter), ATTENTION[-1].run(request), atol=1e-3)


def test_a_history_is_decoded_in_parts(monkeypatch):
    monkeypatch.setattr(blocks, "PART", 16)
    decoded = []
    decode = RowFormat.decode
    monkeypatch.setattr(RowFormat, "decode", lambda self, rows: decoded.append(rows.shape[-2]) or decode(self, rows))
    with prefer("blocks"):
        attend(request_of(40, 5))
    assert decoded == [16, 16, 16, 16, 8, 8]


def test_soft_cap_and_sinks_of_the_reference():
    """A cap far above all scores and a sink far below them change nothing; others do."""
    plain = request_of(20, 3, mask=padded(20, 3, 4))
    run = ATTENTION[-1].run
    same = replace(plain, softcap=1e4, sinks=torch.full((4,), -50.0))
    torch.testing.assert_close(run(same), run(plain))
    assert not torch.allclose(run(replace(plain, softcap=0.5)), run(plain), atol=1e-2)
    halved = run(replace(plain, sinks=torch.full((4,), 50.0)))
    assert halved.abs().max() < 1e-10


def test_the_choice_says_why():
    with prefer("dequantize"):
        assert resolve(request_of(20, 3)).chosen.name == "dequantize"
    with prefer("blocks"):
        found = resolve(request_of(20, 20, causal=True))
        assert found.chosen.name == "dequantize"
        assert "blocks" in str(found)
    with pytest.raises(ConfigError, match="allowed are kernel, triton, blocks, dequantize"), prefer("fast"):
        pass


def test_a_wrong_name_in_the_environment(monkeypatch):
    monkeypatch.setenv("QLLM_HF_ATTENTION", "fast")
    with pytest.raises(ConfigError, match="QLLM_HF_ATTENTION='fast'"):
        resolve(request_of(20, 3))
