"""Why no kernel for GPUs runs: a setting, no Triton, no GPU, or one that they are not made for."""

import sys
from types import SimpleNamespace

import pytest
import torch

import qllm_hf  # noqa: F401  (in a source tree it knows where the kernels are)
from qllm_kernels import gpu


@pytest.fixture
def machine(monkeypatch):
    """A machine with Triton and two GPUs that the kernels take, and means to change it."""
    capabilities = [(9, 0), (8, 0)]
    monkeypatch.delenv(gpu.SETTING, raising=False)
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    monkeypatch.setattr(gpu, "_no_triton", lambda: None)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.5.0", constexpr_function=None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device])
    monkeypatch.setattr(torch.version, "hip", None)
    gpu._no_gpu.cache_clear()
    gpu._old_triton.cache_clear()
    yield monkeypatch, capabilities
    gpu._no_gpu.cache_clear()
    gpu._old_triton.cache_clear()


def test_nothing_is_missing(machine):
    assert gpu.missing() is None


@pytest.mark.parametrize(
    ("setting", "reason"), [("off", "turned off by QLLM_HF_GPU=off"), ("1", "QLLM_HF_GPU='1': allowed is off")]
)
def test_settings(machine, setting, reason):
    machine[0].setenv(gpu.SETTING, setting)
    assert gpu.missing() == reason


def test_no_gpu(machine):
    machine[0].setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.missing() == "torch finds no GPU"
    machine[0].setattr(gpu, "_no_triton", lambda: "no Triton")
    assert gpu.missing() == "no Triton"


def test_an_old_triton(machine):
    """That of torch 2.8: importing the kernels would fail."""
    machine[0].setitem(sys.modules, "triton", SimpleNamespace(__version__="3.4.0"))
    assert gpu.missing() == "Triton 3.4.0 is too old: the kernels take 3.5, which comes with torch 2.9, and newer"


def test_gpus_of_another_maker(machine):
    machine[0].setattr(torch.version, "hip", "6.4")
    assert gpu.missing() == "the kernels have assembly for GPUs of NVIDIA"


def test_one_gpu_is_too_old(machine):
    machine[1][1] = (7, 5)
    assert gpu.missing() == "a GPU of compute capability 7.5: takes 8.0 and newer"
