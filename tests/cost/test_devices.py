"""Devices are found by any usual spelling of their names, and never one for another."""

import pytest
import torch

from qllm_hf.cost import devices
from qllm_hf.cost.devices import DEVICES, find_device, this_device
from qllm_hf.errors import ConfigError


def test_the_table_is_plausible():
    assert len({device.name for device in DEVICES}) == len(DEVICES)
    for device in DEVICES:
        assert device.source
        assert 8e9 < device.memory_bytes < 1e12
        assert 5e10 < device.bandwidth < 1e13
        if device.float_rate is not None:
            assert 1e12 <= device.float_rate < 5e15
        if device.integer_rate is not None:
            assert device.float_rate <= device.integer_rate <= 5 * device.float_rate
    plain = [devices._plain(name) for device in DEVICES for name in {device.name, *device.also}]
    assert len(set(plain)) == len(plain), "one name for two devices"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("A100-80GB", "A100-80GB"),
        ("a100 80gb", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("h200", "H200"),
        ("Tesla T4", "T4"),
        ("rtx4090", "RTX 4090"),
        ("GeForce RTX 3090", "RTX 3090"),
        ("AMD Instinct MI300X", "MI300X"),
        ("Apple M4 Max", "M4 Max"),
        ("DDR5_desktop", "DDR5 desktop"),
    ],
)
def test_spelling_is_forgiven(given, name):
    assert find_device(given).name == name


def test_all_names_find_their_device():
    for device in DEVICES:
        for name in (device.name, *device.also):
            assert find_device(name) is device


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("A100", "but A100-40GB and A100-80GB and A100-80GB-PCIe: say which"),
        ("L40", "no device 'L40' here, but L40S: say which"),
        ("rtx 4091", "Did you mean 'RTX 4090'"),
        ("abacus", "no device 'abacus' here. Known are T4,"),
        ("", "Known are"),
        (None, "Known are"),
    ],
)
def test_unknown_devices(given, message):
    with pytest.raises(ConfigError, match=message):
        find_device(given)


def test_this_computer_has_memory():
    device = this_device()
    assert device.memory_bytes > 1e8
    if not torch.cuda.is_available():
        assert (device.bandwidth, device.float_rate) == (None, None)


def test_a_container_has_what_it_may_use(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(devices, "_LIMIT", limit)
    whole = this_device().memory_bytes
    limit.write_text("max\n")
    assert this_device().memory_bytes == whole
    limit.write_text("123456789\n")
    assert this_device().memory_bytes == 123456789


def test_a_gpu_has_the_memory_that_its_driver_says(monkeypatch):
    found = type("Properties", (), {"name": "NVIDIA H200", "total_memory": 150})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    assert (this_device().memory_bytes, this_device().bandwidth) == (150, 4.8e12)
    found.name = "NVIDIA Unheard 9000"
    assert (this_device().memory_bytes, this_device().bandwidth) == (150, None)
