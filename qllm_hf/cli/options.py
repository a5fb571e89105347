"""Options that several commands share, and the config they add up to."""

from __future__ import annotations

import json
import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import UsageError

if TYPE_CHECKING:
    from ..config import QllmConfig


class Dtype(str, Enum):
    """dtype of what stays in floating point."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, an id on the Hub, or 'reference', which comes with qllm_hf.",
        show_default=False,
    ),
]
SchemeText = Annotated[
    str | None,
    typer.Option("--scheme", "-s", help="Bits, such as W4, W4A8, KV4, W4KV8, or with group sizes: W4g32KV8g64."),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="PATTERN",
        help="Pattern of layers that stay in floating point, such as '*.down_proj'. Repeatable.",
    ),
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--override", metavar="PATTERN=SCHEME", help="Other bits for some layers: '*.down_proj=W8'. Repeatable."
    ),
]
QuantizeHead = Annotated[
    bool,
    typer.Option("--quantize-head", help="The output head too: to the bits of the weights, or of an --override."),
]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="Of what stays in floating point; auto: as the model says.")
]
DeviceMap = Annotated[str | None, typer.Option("--device-map", help="Where weights go: auto, cpu, cuda, cuda:1, ...")]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option(
        "--max-memory",
        metavar="DEVICE=SIZE",
        help="What weights may take of a device, for --device-map auto: cpu=8GB, 0=20GiB. Repeatable.",
    ),
]
OffloadFolder = Annotated[
    Path | None, typer.Option("--offload-folder", metavar="DIR", help="Weights that fit on no device go there.")
]
TensorParallel = Annotated[
    bool,
    typer.Option(
        "--tensor-parallel", "--tp", help="Cut one model over the processes that torchrun started, a part for each."
    ),
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no remarks.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; so does QLLM_DEBUG=1.")]


def method_options(given: list[str] | None, awq_result: Path | None = None) -> dict[str, Any] | None:
    """{name: value} of NAME=VALUE texts: numbers, true, false, or a word.

    Raises:
        UsageError: a text without '='.
    """
    values: dict[str, Any] = {} if awq_result is None else {"stored": str(awq_result)}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--method-option {text!r}: write NAME=VALUE, such as alpha=0.6.")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values or None


def placing(device_map: str | None, max_memory: list[str] | None, offload_folder: Path | None) -> dict[str, Any]:
    """Where weights go, as options of `loading.load_model`.

    Raises:
        UsageError: options that say nothing without --device-map auto, or a text that is no DEVICE=SIZE.
        ConfigError: a size that is none.
    """
    from ..advice.quantities import parse_memory

    if device_map is None and (max_memory or offload_folder):
        raise UsageError("--max-memory and --offload-folder belong to --device-map auto: give that as well.")
    limits: dict[int | str, int] = {}
    for text in max_memory or ():
        device, _, size = text.partition("=")
        if not size or not (device.isdigit() or device in ("cpu", "mps")):
            raise UsageError(
                f"--max-memory {text!r}: write DEVICE=SIZE, such as cpu=8GB, or 0=20GiB for the first GPU."
            )
        limits[int(device) if device.isdigit() else device] = parse_memory(size)
    return {"device_map": device_map, "max_memory": limits or None, "offload_folder": offload_folder}


def processes(tensor_parallel: bool) -> int:
    """The number of processes that a model is cut over.

    Raises:
        UsageError: --tensor-parallel, and there is one process.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if tensor_parallel and started == 1:
        raise UsageError(
            "--tensor-parallel cuts a model over several processes, and this is the only one. Start them: "
            "torchrun --nproc-per-node 2 -m qllm_hf ..."
        )
    return started if tensor_parallel else 1


def make_config(
    scheme: str | None, keep: list[str] | None = None, override: list[str] | None = None, **options: Any
) -> QllmConfig | None:
    """The QllmConfig that the options describe, or None without a scheme. Options that are None or False are left out.

    Raises:
        UsageError: an override without '=', or options that need a scheme.
        SchemeError, ConfigError: values that cannot be.
    """
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    if scheme is None:
        if keep or override or given:
            raise UsageError(
                "these options change a scheme, and there is none. Give --scheme as well, such as --scheme W4KV8."
            )
        return None
    from ..config import QllmConfig

    overrides = {}
    for text in override or ():
        pattern, equals, bits = text.rpartition("=")
        if not equals or not pattern:
            raise UsageError(f"--override {text!r}: write PATTERN=SCHEME, such as '*.down_proj=W8'.")
        overrides[pattern] = bits
    return QllmConfig.from_scheme(scheme, modules_to_not_convert=keep or None, overrides=overrides or None, **given)
