"""qllm-hf bench: how fast schemes run on this machine, and what memory they take, next to the float model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .output import UsageError, answer, answering, note

if TYPE_CHECKING:
    import torch

    from ..config import QllmConfig
    from ..efficiency.cells import Cell

SCHEMES = "FP16,W8,W4,W8A8,KV8,KV4"
LIBRARIES = ("kernels", "triton")
"""Versions that can move a time, beside those that can move a score."""

_WAIT = "Wait for it to end: of two that run at once, neither is measured."


def bench(
    model: options.Model,
    schemes: Annotated[
        str, typer.Option(help="What to measure, with commas between. With FP16 among them, ratios to it are shown.")
    ] = SCHEMES,
    batch: Annotated[str, typer.Option(help="Sequences at a time, with commas between.")] = "1,4,16",
    input_tokens: Annotated[
        str, typer.Option("--input", metavar="TEXT", help="Tokens of each prompt, with commas between.")
    ] = "128,512,2048",
    output_tokens: Annotated[
        int, typer.Option("--output", metavar="TOKENS", min=2, help="New tokens of each sequence.")
    ] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Runs that count; from 2 on, quartiles are shown.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before them that do not count.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for bench.jsonl. What is there is not measured again."),
    ] = None,
    dtype: options.DtypeOption = options.Dtype.auto,
    device_map: options.DeviceMap = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure prefill, decoding, latency and memory of schemes, in turns with the float model.

    Every scheme is checked before it is timed, and too little memory is an entry of the table. Prompts are random
    tokens. Let nothing else run on the machine meanwhile.

    \b
    Examples:
      qllm-hf bench reference --schemes FP16,W4,KV4 --batch 1,4 --input 64,128
      qllm-hf bench path/to/model --device-map cuda --dtype float16 -o bench
      qllm-hf bench path/to/model --schemes FP16,W4 --batch 1 --input 2048 --output 128 --repeats 9
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug), contextlib.ExitStack() as held:
        names = _schemes(schemes)
        batches, inputs = _numbers("--batch", batch), _numbers("--input", input_tokens)

        from ..cost.model import cost_of
        from ..efficiency.cells import Cells
        from ..efficiency.ratios import row_of
        from ..efficiency.run import Bench, Settings, cases_of
        from ..efficiency.text import page
        from ..evaluation.store import writing
        from ..loading import check_float, load_model, model_on_meta

        held.enter_context(writing(out, _WAIT))
        device = _device(device_map)
        check_float(model, trust_remote_code=trust_remote_code)
        shapes = model_on_meta(model, dtype=dtype.value, trust_remote_code=trust_remote_code)
        positions = getattr(shapes.config.get_text_config(decoder=True), "max_position_embeddings", None)
        cases = cases_of(batches, inputs, output_tokens, positions)
        costs = {name: cost_of(shapes, config) for name, config in names.items()}
        made = _made(model, shapes, device, device_map, repeats, warmup)
        cells = Cells(out, made)
        if not quiet and cells.kept:
            note(f"{cells.kept} cells are there already.")

        def load(scheme: str) -> Any:
            return load_model(
                model, names[scheme], dtype=dtype.value, device_map=device_map, trust_remote_code=trust_remote_code
            )

        def tell(cell: Cell) -> None:
            if not quiet:
                note(_told(cell))

        weights = {name: cost.weight_bytes for name, cost in costs.items()}
        settings = Settings(repeats=repeats, warmup=warmup)
        found = Bench(load, weights, cells, settings, device, tell).run(list(names), cases)
        params = next(iter(costs.values())).params
        data = {
            "model": model,
            "params": params,
            **{key: made[key] for key in ("revision", "dtype", "device", "hardware", "versions")},
            "repeats": repeats,
            "warmup": warmup,
            "rows": [row_of(cell, found) for cell in found],
        }
        answer(data, f"{_title(data)}\n\n{page(found, params)}", as_json=as_json)


def _schemes(text: str) -> dict[str, QllmConfig | None]:
    """{scheme: its config, or None for the float model}, each under its own name once."""
    from ..config import QllmConfig
    from ..efficiency.cells import BASELINE
    from ..scheme import Scheme

    parsed = dict.fromkeys(str(Scheme.parse(name)) for name in text.split(",") if name.strip())
    if not parsed:
        raise UsageError("--schemes names none. Give some, such as --schemes FP16,W4,KV4.")
    return {name: None if name == BASELINE else QllmConfig.from_scheme(name) for name in parsed}


def _numbers(option: str, text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"{option} {text!r}: give one or more positive numbers with commas between, such as 1,4,16.")
    return list(dict.fromkeys(found))


def _device(device_map: str | None) -> torch.device:
    """Where the model will be; a GPU without a number stands for all of them, if the model may be spread."""
    import torch

    if device_map is None or device_map == "cpu":
        return torch.device("cpu")
    if not device_map.startswith("cuda"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        raise UsageError(f"--device-map {device_map}: there is no GPU that torch can use. Leave it out.")
    return torch.device("cuda:0" if device_map == "cuda" else device_map)


def _made(
    model: str, shapes: Any, device: torch.device, device_map: str | None, repeats: int, warmup: int
) -> dict[str, Any]:
    """What must be the same for a cell to be the same measurement."""
    import os

    from ..evaluation.provenance import hardware, versions
    from ..reporting.tensors import dtype_name
    from ..revision import revision_of

    known = versions()
    found = {name: known[name] for name in ("qllm_hf", "python", "torch", "transformers")}
    return {
        "model": model,
        "revision": revision_of(model, shapes),
        "dtype": dtype_name(shapes.dtype),
        "device": str(device),
        "device_map": device_map,
        "repeats": repeats,
        "warmup": warmup,
        "hardware": hardware(device),
        "versions": found | _installed(),
        "settings": {key: value for key, value in sorted(os.environ.items()) if key.startswith("QLLM_HF_")},
    }


def _installed() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _told(cell: Cell) -> str:
    from ..efficiency.ratios import times_of
    from ..efficiency.text import OOM

    name = f"{cell.scheme}, batch {cell.case.batch}, input {cell.case.input}"
    seconds = times_of(cell)
    if not seconds:
        return f"{name}: {OOM[cell.status]}, {cell.reason}"
    return f"{name}: {seconds['end_to_end'].median:.3g} s" + ("" if cell.baseline is None else ", in turns with FP16")


def _title(data: Mapping[str, Any]) -> str:
    hardware, versions = data["hardware"], data["versions"]
    output = data["rows"][0]["output"]
    return (
        f"{data['model']}, {data['params']:,} parameters, {data['dtype']}, {output} new tokens, median of "
        f"{data['repeats']} {'runs' if data['repeats'] > 1 else 'run'} after {data['warmup']}\n"
        f"{hardware['device']}, {hardware['threads']} threads; torch {versions['torch']}, "
        f"transformers {versions['transformers']}, qllm_hf {versions['qllm_hf']}"
    )
