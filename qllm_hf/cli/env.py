"""qllm-hf env: versions, devices, and which implementation would run where, and why."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from . import options
from .output import answer, answering

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "huggingface-hub", "optimum", "lm-eval", "kernels")


def env(as_json: options.AsJson = False, quiet: options.Quiet = False, debug: options.Debug = False) -> None:
    """Say what this machine offers: paste it into a bug report.

    \b
    Examples:
      qllm-hf env
      qllm-hf env --json
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        data = environment()
        answer(data, _text(data), as_json=as_json)


def environment() -> dict[str, Any]:
    """Versions, CPU, GPUs, settings, and for typical requests the implementation that takes each."""
    import torch

    from qllm_hf import __version__

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "bytes": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
            }
        )
    return {
        "qllm_hf": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "autoload": os.environ.get("QLLM_HF_AUTOLOAD") == "1",
        "settings": {key: value for key, value in sorted(os.environ.items()) if key.startswith("QLLM_")},
        "cpu_kernels": _cpu_kernels(),
        "linear": _linear(["cpu", *(["cuda"] if gpus else [])]),
    }


def _cpu_kernels() -> dict[str, Any]:
    """The library of kernels for the processor: which, how built, its level and threads; or why there is none."""
    from qllm_kernels import cpu

    status = cpu.status()
    return {
        "available": status.reason is None,
        "reason": status.reason,
        "library": str(status.path),
        "level": status.level,
        "levels": list(status.levels),
        "left_out": status.build.get("left_out", {}),
        "compiler": status.build.get("compiler"),
        "threads": status.threads or None,
    }


def _linear(devices: list[str]) -> list[dict[str, Any]]:
    """For each device, dtype and scheme: every implementation, and whether it runs, why not, or that none is needed."""
    import torch

    from ..ops import LINEAR, Request, resolve
    from ..scheme import Scheme

    rows = []
    for device in devices:
        for dtype in (torch.bfloat16, torch.float16 if device == "cuda" else torch.float32):
            for text in ("W4", "W8", "W4A8", "W8A8"):
                scheme = Scheme.parse(text)
                assert scheme.weight is not None
                resolution = resolve(Request(device, dtype, scheme.weight, scheme.activation))
                refused = dict(resolution.refused)
                verdicts = {
                    each.name: "runs" if each is resolution.chosen else refused.get(each.name, "not needed")
                    for each in LINEAR
                }
                rows.append(
                    {
                        "device": device,
                        "dtype": str(dtype).removeprefix("torch."),
                        "scheme": text,
                        "implementations": verdicts,
                    }
                )
    return rows


BUILD_THEM = (
    "with a C++17 compiler, `pip install --force-reinstall --no-deps qllm-hf` builds them "
    "(in a source tree: python kernels/build.py)"
)


def _kernel_lines(kernels: dict[str, Any]) -> list[str]:
    """What runs on the processor, or why the kernels do not, what runs instead and what to do."""
    if not kernels["available"]:
        lines = [
            f"  {kernels['reason']}",
            "  torch runs instead and dequantizes each weight for each call, which is slow",
        ]
        return lines if "turned off" in kernels["reason"] else [*lines, f"  {BUILD_THEM}"]
    others = [name for name in kernels["levels"] if name != kernels["level"]]
    return [
        f"  {kernels['library']}",
        f"  level {kernels['level']}" + (f" (QLLM_HF_CPU chooses another: {', '.join(others)})" if others else ""),
        f"  built by {kernels['compiler'] or 'an unknown compiler'}",
        *(f"  without level {name}: {why}" for name, why in kernels["left_out"].items()),
        f"  threads: {kernels['threads']}",
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _text(data: dict[str, Any]) -> str:
    from ..reporting.text import bytes_text, table

    gpus = [f"{gpu['name']}, {bytes_text(gpu['bytes'])}, capability {gpu['capability']}" for gpu in data["gpus"]]
    rows = [
        ["qllm_hf", data["qllm_hf"]],
        ["python", f"{data['python']} on {data['platform']}"],
        *([name, version or "not installed"] for name, version in data["packages"].items()),
        ["cpu", f"{data['cpu']}, {data['cores']} cores, torch uses {data['torch_threads']} threads"],
        *(["gpu", gpu] for gpu in gpus or ["none that torch can use"]),
        [
            "autoload",
            "on" if data["autoload"] else "off (QLLM_HF_AUTOLOAD=1 makes packed models load without importing qllm_hf)",
        ],
        *([name, value] for name, value in data["settings"].items()),
    ]
    lines = [table(rows, "ll", indent=0), "", "CPU kernels", *_kernel_lines(data["cpu_kernels"]), "", "Linear layers"]
    for row in data["linear"]:
        lines.append(f"  {row['device']} {row['dtype']} {row['scheme']}")
        lines += [f"    {name}: {verdict}" for name, verdict in row["implementations"].items()]
    return "\n".join(lines)
