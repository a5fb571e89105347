"""What a run takes is counted exactly, what it will take is not less, and a lack of memory is known when it is seen."""

import pytest
import torch
from tiny_models import float_model

from qllm_hf.efficiency import memory
from qllm_hf.efficiency.cells import Case
from qllm_hf.efficiency.measure import prompts, run_once
from qllm_hf.efficiency.memory import available_bytes, is_out_of_memory, peak_of

CPU = torch.device("cpu")


def test_peak_is_the_most_at_one_time(capfd):
    def run():
        one, other = torch.zeros(1000, 1000), torch.zeros(1000, 1000)
        del one
        return other + torch.zeros(1000, 1000)  # three are there at this moment

    result, peak = peak_of(CPU, run)
    assert 3 * 4 * 10**6 <= peak < 3 * 4 * 10**6 + 1000
    assert float(result.sum()) == 0
    assert capfd.readouterr().err == ""


def test_peak_is_the_same_each_time():
    model = float_model("llama")
    case = Case(2, 50, 4)
    ids = prompts(model, case)
    assert len({peak_of(CPU, lambda: run_once(model, ids, case))[1] for _ in range(3)}) == 1


def test_an_error_leaves_the_counting():
    def run():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        peak_of(CPU, run)
    assert peak_of(CPU, lambda: torch.zeros(10))[1] >= 40


def test_available_is_the_smaller_of_system_and_container(monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable:    1000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available_bytes(CPU) == int(1024_000 * 0.95)
    (tmp_path / "memory.max").write_text("600000\n")
    (tmp_path / "memory.current").write_text("100000\n")
    assert available_bytes(CPU) == 475_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(CPU) == int(1024_000 * 0.95)
    meminfo.unlink()
    assert available_bytes(CPU) is None


def test_lack_of_memory_is_known_by_class_or_words():
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(10**14)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
