"""qllm-hf export: a packed checkpoint as one that serving engines read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import UsageError, answer, answering

GGUF = "gguf"


def export(
    model: Annotated[
        str | None,
        typer.Argument(metavar="DIR", help="A folder with packed weights.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder (gguf: file) to write; else beside the model."),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format", metavar="NAME", help="compressed-tensors; gguf, for llama.cpp; float: ordinary weights."
        ),
    ] = "compressed-tensors",
    reader: Annotated[
        str | None,
        typer.Option("--for", metavar="READER", help="Who has to read it: transformers, vllm, ... (any by default)."),
    ] = None,
    readers: Annotated[bool, typer.Option("--readers", help="Print who reads what, and how that is known.")] = False,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of the files that are written.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in the output folder.")] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a quantized model in another format, bit for bit the same weights.

    compressed-tensors is what vLLM and transformers read, gguf what llama.cpp reads. What a format cannot say, and what
    no reader takes, is refused with the nearest that works. The model is never in memory: one tensor is read and
    written at a time.

    \b
    Examples:
      qllm-hf export model-w4kv8 -o model-w4kv8-vllm --for vllm
      qllm-hf export model-w4 --format gguf -o model-w4.gguf
      qllm-hf export model-w4 --format float -o model-w4-float
      qllm-hf export --readers
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        if readers:
            from ..export.text import readers_dict, readers_text

            answer(readers_dict(), readers_text(), as_json=as_json)
            return
        if model is None:
            raise UsageError("say which model: qllm-hf export DIR, or --readers for the table of readers.")

        if format == GGUF:
            if reader is not None:
                raise UsageError("--for chooses among readers of compressed-tensors; gguf is for llama.cpp.")
            from ..export.gguf import export_gguf, gguf_dict, gguf_text

            file = output or Path(model).expanduser().absolute().with_name(f"{Path(model).name}.gguf")
            written = export_gguf(model, file, overwrite=overwrite, trust_remote_code=trust_remote_code)
            answer(gguf_dict(written), gguf_text(written), as_json=as_json)
            return

        from tqdm.auto import tqdm

        from ..advice.quantities import parse_memory
        from ..export.run import export_checkpoint
        from ..export.text import exported_dict, exported_text

        out = output or Path(model).expanduser().absolute().with_name(f"{Path(model).name}-{format}")
        with tqdm(desc="Writing", unit="B", unit_scale=True, delay=1, disable=quiet) as bar:
            done = export_checkpoint(
                model,
                out,
                format=format,
                reader=reader,
                overwrite=overwrite,
                shard_bytes=parse_memory(max_shard_size),
                trust_remote_code=trust_remote_code,
                progress=bar.update,
            )
        answer(exported_dict(done), exported_text(done), as_json=as_json)
