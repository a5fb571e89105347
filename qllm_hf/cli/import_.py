"""qllm-hf import: a checkpoint that another library quantized in, the same integers and scales in our format out."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .command_line import words_of
from .output import UsageError, answer, answering, note

NO_PART_OF_THE_RESULT = ("overwrite", "as_json", "quiet", "debug")
"""Options that do not change what is saved, and are not written down with it."""


class Activations(str, Enum):
    """What becomes of inputs that the other library quantizes."""

    same = "same"
    ours = "ours"
    float = "float"


def import_(
    model: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="A folder with an AWQ, GPTQ, AutoRound or compressed-tensors model.", show_default=False
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to save in.")] = None,
    activations: Annotated[
        Activations,
        typer.Option(
            help="Inputs that are quantized too: only if the formula is the same, by ours, or left in floating point."
        ),
    ] = Activations.same,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of the files that are written.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in DIR.")] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Take over a model that another library quantized, without loss.

    Its integers are packed anew and its scales copied, one layer after another; nothing is rounded a second time. What
    cannot be taken over exactly is refused with the reason. DIR appears when everything is written.

    \b
    Examples:
      qllm-hf import path/to/model-awq -o model-w4
      qllm-hf import path/to/model-w8a8 -o model-w8 --activations float
    """
    given = dict(locals())
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        if output is None:
            raise UsageError("say where to save: -o DIR.")

        from ..advice.quantities import parse_memory
        from ..importing.convert import import_checkpoint, source_folder
        from ..loading import check_output, model_on_meta
        from ..publishing.recipe import recipe_files
        from ..reporting.model import plan_report
        from ..reporting.text import bytes_text

        source_folder(model)
        check_output(output, overwrite=overwrite)
        begin = time.perf_counter()
        imported = import_checkpoint(
            model,
            output,
            activations=activations.value,
            shard_bytes=parse_memory(max_shard_size),
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            others=recipe_files(model, None, words_of("import", import_, given, NO_PART_OF_THE_RESULT)),
        )
        seconds = time.perf_counter() - begin
        if not quiet:
            for remark in imported.notes:
                note(remark)
        shapes = model_on_meta(str(imported.folder), trust_remote_code=trust_remote_code)
        done = plan_report(shapes, imported.config, "stored")
        file_bytes = sum(file.stat().st_size for file in imported.folder.glob("*.safetensors"))
        data = {
            **done.to_dict(),
            "output": str(imported.folder),
            "imported": {"quant_method": imported.peer.method, "made_by": imported.peer.made_by},
            "notes": [*done.notes, *imported.notes],
            "file_bytes": file_bytes,
            "seconds": round(seconds, 3),
        }
        text = f"{done}\n\nSaved in {output}: {bytes_text(file_bytes)} of weights, {seconds:.1f} s"
        answer(data, text, as_json=as_json)


import_.__name__ = "import"  # the verb, which Python keeps for itself
