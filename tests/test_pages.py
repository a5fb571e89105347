"""Large pages for large tensors: that Linux is asked, and that nothing else changes."""

import mmap
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from qllm_hf import pages
from qllm_hf.packed import PackedTensor
from qllm_hf.row_buffer import append
from qllm_hf.scheme import Spec

SETTING, MAPS = Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/proc/self/smaps")
on_request = pytest.mark.skipif(
    not SETTING.is_file() or "[madvise]" not in SETTING.read_text(),
    reason="needs Linux with transparent_hugepage=madvise, where only those who ask get large pages",
)


def large_bytes(x: torch.Tensor) -> int:
    """Bytes of large pages in the mapping that holds the middle of x."""
    address, inside = x.data_ptr() + x.numel() * x.element_size() // 2, False
    for line in MAPS.read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no mapping holds x")


def skip_without_large_pages() -> None:
    """The kernel gives small ones where memory is in pieces: whoever asks it without us gets none either."""
    region = mmap.mmap(-1, 2**26)
    region.madvise(mmap.MADV_HUGEPAGE)
    x = torch.frombuffer(region, dtype=torch.int16).fill_(1)
    if large_bytes(x) < 2**25:
        pytest.skip("the kernel has no large pages left")


@on_request
def test_memory_that_was_asked_for_is_large():
    asked, other = torch.empty(2**25, dtype=torch.int16), torch.empty(2**25 + 2**12, dtype=torch.int16)
    assert pages.on_large_pages(asked) is asked
    asked.fill_(1)
    other.fill_(1)
    if not large_bytes(asked):
        skip_without_large_pages()
    assert large_bytes(asked) >= 2**25
    assert large_bytes(other) == 0


@on_request
def test_packed_weights_and_long_histories_have_it():
    packed = PackedTensor.encode_weight(torch.randn(4096, 4096).bfloat16(), Spec(8, 128))
    if not large_bytes(packed.words):
        skip_without_large_pages()
    assert large_bytes(packed.words) > 0
    rows = torch.empty(0, dtype=torch.int16)
    rows, _ = append(rows, (1, 32, 8192, 40), None, lambda place: place.fill_(1))
    if not large_bytes(rows):
        skip_without_large_pages()
    assert large_bytes(rows) > 0


def test_the_rest_is_left_alone(monkeypatch):
    def unexpected():
        raise AssertionError("asked")

    monkeypatch.setattr(pages, "_madvise", unexpected)
    for x in (torch.empty(pages.SMALLEST - 1, dtype=torch.int8), torch.empty(2**24, device="meta")):
        assert pages.on_large_pages(x) is x
    with FakeTensorMode():
        pages.on_large_pages(torch.empty(2**24))
    with pytest.raises(AssertionError, match="asked"):
        pages.on_large_pages(torch.empty(2**24))
