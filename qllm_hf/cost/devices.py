"""Named devices: memory, bandwidth and peak rates, from their makers' data sheets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from ..errors import ConfigError, did_you_mean

_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
"""What a container may use at most, where the system has containers."""
_MAKERS: Final = re.compile(r"nvidia|geforce|tesla|amd|instinct|radeon|apple|intel|[^a-z0-9]")


@dataclass(frozen=True)
class Device:
    """One accelerator, or one computer.

    Attributes:
        name: of the device.
        memory_bytes: that there are. Makers' GB are taken as 1e9 bytes, so a device never has less than this.
        bandwidth: bytes per second between memory and cores, the peak; None where it is not known.
        float_rate: operations per second on dense float16 and bfloat16 matrices, the peak; None where not known.
        integer_rate: the same on 8-bit integers; None where such matrices are not multiplied faster than floats.
        source: of these numbers.
        also: other names, such as the one that torch gives.
    """

    name: str
    memory_bytes: int
    bandwidth: float | None
    float_rate: float | None
    integer_rate: float | None
    source: str
    also: tuple[str, ...] = ()


def _device(
    name: str,
    memory_gb: float,
    gb_per_second: float,
    float_tera: float | None,
    integer_tera: float | None,
    source: str,
    *also: str,
) -> Device:
    float_rate, integer_rate = (rate if rate is None else rate * 1e12 for rate in (float_tera, integer_tera))
    return Device(name, round(memory_gb * 1e9), gb_per_second * 1e9, float_rate, integer_rate, source, also)


# Rates without sparsity; on GeForce cards with sums in float32, as torch multiplies. float32 models run slower yet.
DEVICES: Final = (
    _device("T4", 16, 320, 65, 130, "NVIDIA T4 datasheet"),
    _device("A10", 24, 600, 125, 250, "NVIDIA A10 datasheet"),
    _device("L4", 24, 300, 121, 242, "NVIDIA L4 datasheet"),
    _device("L40S", 48, 864, 362.05, 733, "NVIDIA L40S datasheet"),
    _device("A100-40GB", 40, 1555, 312, 624, "NVIDIA A100 datasheet", "A100-SXM4-40GB", "A100-PCIE-40GB"),
    _device("A100-80GB", 80, 2039, 312, 624, "NVIDIA A100 80GB datasheet (SXM)", "A100-SXM4-80GB", "A100-SXM-80GB"),
    _device("A100-80GB-PCIe", 80, 1935, 312, 624, "NVIDIA A100 80GB datasheet (PCIe)", "A100-PCIE-80GB"),
    _device("H100", 80, 3350, 989.5, 1979, "NVIDIA H100 datasheet (SXM)", "H100-SXM", "H100-SXM5", "H100-80GB",
            "H100 80GB HBM3"),
    _device("H100-PCIe", 80, 2000, 756.5, 1513, "NVIDIA H100 datasheet (PCIe)"),
    _device("H200", 141, 4800, 989.5, 1979, "NVIDIA H200 datasheet (SXM)", "H200-SXM"),
    _device("RTX 3090", 24, 936, 71, 284, "NVIDIA Ampere GA102 GPU architecture whitepaper", "3090"),
    _device("RTX 4090", 24, 1008, 165.2, 660.6, "NVIDIA Ada GPU architecture whitepaper", "4090"),
    _device("MI250X", 128, 3276.8, 383, 383, "AMD Instinct MI250X data sheet"),
    _device("MI300X", 192, 5300, 1307.4, 2614.9, "AMD Instinct MI300X data sheet", "MI300X OAM"),
    _device("M1 Max", 64, 400, 10.4, None, "Apple newsroom, October 2021; 32-bit rate, which 16 bits share"),
    _device("M2 Ultra", 192, 800, 27.2, None, "Apple newsroom, June 2023; 32-bit rate, which 16 bits share"),
    _device("M4 Max", 128, 546, None, None, "Apple newsroom, October 2024; no rate is published"),
    _device("Xeon 8480+", 256, 307.2, 114.7, 229.4,
            "Intel: 8 channels of DDR5-4800; 56 cores x 2.0 GHz x 1024 bfloat16 operations of AMX a cycle (2048 of "
            "int8); memory of 8 x 32 GB"),
    _device("DDR5 desktop", 64, 89.6, 1.15, 4.6,
            "2 channels of DDR5-5600; 8 cores x 4.5 GHz x 32 operations a cycle in float32 with AVX2 (128 in int8 with "
            "AVX-VNNI); memory of 2 x 32 GB", "desktop", "cpu", "ddr5", "desktop ddr5 cpu"),
)  # fmt: skip


def find_device(name: str) -> Device:
    """The device that is meant; makers' names, capitals, spaces and dashes do not matter.

    Raises:
        ConfigError: no device is called so.
    """
    wanted = _plain(name) if isinstance(name, str) else ""
    names = {_plain(each): device for device in DEVICES for each in (device.name, *device.also)}
    if wanted in names:
        return names[wanted]
    begun = [device.name for device in DEVICES if wanted and _plain(device.name).startswith(wanted)]
    if begun:  # an L40 is no L40S, so not even a single one is taken for what was meant
        raise ConfigError(f"there is no device {name!r} here, but {' and '.join(begun)}: say which is meant.")
    near = did_you_mean(wanted, [_plain(device.name) for device in DEVICES])
    for device in DEVICES:
        near = near.replace(repr(_plain(device.name)), repr(device.name))
    raise ConfigError(f"there is no device {name!r} here.{near} Known are {', '.join(d.name for d in DEVICES)}.")


def this_device() -> Device:
    """The first GPU that torch can use, or this computer: how much memory it has, and its rates if it is a known GPU.

    Raises:
        ConfigError: the system does not say how much memory there is.
    """
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        try:
            known = find_device(found.name)
        except ConfigError:
            return Device(found.name, found.total_memory, None, None, None, "as the driver says")
        rates = (known.bandwidth, known.float_rate, known.integer_rate)
        return Device(found.name, found.total_memory, *rates, f"memory as the driver says; {known.source}")
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        raise ConfigError("this system does not say how much memory it has. Name a device.") from None
    if _LIMIT.is_file() and (limit := _LIMIT.read_text().strip()).isdigit():  # "max" in a container without a limit
        memory = min(memory, int(limit))
    return Device("this computer", memory, None, None, None, "as the system says")


def _plain(name: str) -> str:
    return _MAKERS.sub("", name.lower())
