"""qllm-hf quantize: a float model in, a folder with packed weights out."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .command_line import words_of
from .output import UsageError, answer, answering, note
from .stopping import keeps

NO_PART_OF_THE_RESULT = (
    *("overwrite", "restart", "dry_run", "max_memory", "offload_folder", "as_json", "quiet", "debug"),
)
"""Options that do not change what is saved, and are not written down with it."""


def quantize(
    model: options.Model,
    scheme: options.SchemeText = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to save in.")] = None,
    w_group_size: Annotated[
        int | None, typer.Option(help="Weights per group (128); -1 per output channel, 0 per matrix.")
    ] = None,
    kv_group_size: Annotated[int | None, typer.Option(help="Elements per group of keys and values (128).")] = None,
    w_symmetric: Annotated[bool, typer.Option("--w-symmetric", help="Weights without zero points.")] = False,
    a_symmetric: Annotated[bool, typer.Option("--a-symmetric", help="Activations without zero points.")] = False,
    kv_symmetric: Annotated[bool, typer.Option("--kv-symmetric", help="Keys and values without zero points.")] = False,
    kv_rotate_keys: Annotated[
        bool, typer.Option("--kv-rotate-keys", help="Turn keys by a Hadamard matrix before they are quantized.")
    ] = False,
    paper_exact: Annotated[bool, typer.Option("--paper-exact", help="The study's arithmetic bit for bit.")] = False,
    quantize_routers: Annotated[bool, typer.Option("--quantize-routers", help="Routers of experts too.")] = False,
    method: Annotated[
        str, typer.Option(help="rtn, awq, smoothquant, gptq, awq+gptq or smoothquant+gptq.", metavar="NAME")
    ] = "rtn",
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DATASET",
            help="Text for methods other than rtn: .txt, .jsonl with 'text', owner/name on the Hub, or 'curriculum'.",
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Blocks of calibration text (128).")] = None,
    seqlen: Annotated[int | None, typer.Option(help="Tokens in each block (512).")] = None,
    method_option: Annotated[
        list[str] | None,
        typer.Option("--method-option", metavar="NAME=VALUE", help="Such as alpha=auto or damping=0.05. Repeatable."),
    ] = None,
    awq_result: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Apply a stored AWQ result instead of searching (method awq).")
    ] = None,
    bits_per_weight: Annotated[
        float | None, typer.Option(help="Choose each layer's bits so that they cost this on average, such as 4.25.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what a run that was stopped has calibrated.")
    ] = False,
    keep: options.Keep = None,
    override: options.Override = None,
    quantize_head: options.QuantizeHead = False,
    dtype: options.DtypeOption = options.Dtype.auto,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    offload_folder: options.OffloadFolder = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Of the files that are written, such as 5GB.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in DIR.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen; reads no weights.")] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Quantize a model and save it.

    Weights are packed while they are read, one after another; methods that look at calibration text hold one decoder
    block in floating point at a time, and go on where they were stopped. DIR appears when everything is written.

    \b
    Examples:
      qllm-hf quantize path/to/model --scheme W4KV8 -o model-w4kv8
      qllm-hf quantize path/to/model --scheme W4 --method awq --calibration text.jsonl -o model-w4
      qllm-hf quantize path/to/model --scheme W3 --override '*.down_proj=W4' --dry-run
    """
    given = dict(locals())
    with answering(as_json=as_json, quiet=quiet, debug=debug), contextlib.ExitStack() as held:
        where = options.placing(device_map, max_memory, offload_folder)
        if scheme is None and bits_per_weight is not None:
            scheme = "W4"  # of what the budget leaves open
        config = options.make_config(
            scheme,
            keep,
            override,
            w_group_size=w_group_size,
            kv_group_size=kv_group_size,
            w_symmetric=w_symmetric,
            a_symmetric=a_symmetric,
            kv_symmetric=kv_symmetric,
            kv_rotate_keys=kv_rotate_keys,
            paper_exact=paper_exact,
            quantize_routers=quantize_routers,
            quantize_head=quantize_head,
            method=None if method == "rtn" else method,
            method_options=options.method_options(method_option, awq_result),
            calibration=calibration,
            samples=samples,
            seqlen=seqlen,
            bits_per_weight=bits_per_weight,
        )
        if config is None:
            raise UsageError("say how: --scheme W4KV8, for example.")
        if dry_run and bits_per_weight is not None:
            raise UsageError("--bits-per-weight is met by measuring the model, which --dry-run does not do.")
        if output is None and not dry_run:
            raise UsageError("say where to save: -o DIR, or only look at what would happen: --dry-run.")

        from ..errors import CheckpointError, ConfigError
        from ..loading import (
            check_float,
            check_output,
            load_model,
            load_tokenizer,
            local_folder,
            model_on_meta,
            save_model,
        )
        from ..reporting.model import plan_report, report
        from ..reporting.text import bytes_text
        from ..whole import claiming

        if str(config.scheme) == "FP16":
            raise ConfigError(f"scheme {scheme!r} quantizes nothing. Give bits below 16, such as W4KV8.")
        check_float(model, trust_remote_code=trust_remote_code)
        if dry_run:
            shapes = model_on_meta(model, dtype=dtype.value, trust_remote_code=trust_remote_code)
            planned = plan_report(shapes, config)
            answer(planned.to_dict(), str(planned), as_json=as_json)
            return
        assert output is not None
        held.enter_context(claiming(output))
        check_output(output, overwrite=overwrite)
        folder = local_folder(model)
        if folder is not None and folder.resolve() == output.expanduser().resolve():
            raise CheckpointError(f"{model!r} would be replaced by its own quantized form. Save in another folder.")
        config.check_ready()
        begin = time.perf_counter()
        try:
            tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        except CheckpointError as error:
            if config.needs_calibration:
                raise
            tokenizer = None
            if not quiet:
                note(f"no tokenizer is saved: {error}")
        config.tokenizer = tokenizer
        work = None
        if config.needs_calibration and config.bits_per_weight is None:
            from ..methods.calibration import calibration_for
            from ..streamed import quantize_streamed, work_folder

            text = calibration_for(config, model)
            if len(text.ids) < config.samples and not quiet:
                note(f"{text.source} gives {len(text.ids)} of {config.samples} blocks of {config.seqlen} tokens")
            keeps("what was calibrated is kept: the same command goes on from there")
            loaded, work = quantize_streamed(
                model,
                config,
                text,
                work_folder(output),
                dtype=dtype.value,
                device=device_map,
                trust_remote_code=trust_remote_code,
                restart=restart,
                progress=not quiet,
            )
        else:
            loaded = load_model(model, config, dtype=dtype.value, trust_remote_code=trust_remote_code, **where)
        from ..publishing.recipe import recipe_files

        recipe = recipe_files(model, loaded, words_of("quantize", quantize, given, NO_PART_OF_THE_RESULT))
        saved = save_model(loaded, tokenizer, output, overwrite=overwrite, max_shard_size=max_shard_size, others=recipe)
        if work is not None:
            work.remove()
        seconds = time.perf_counter() - begin
        done = report(loaded)
        file_bytes = sum(file.stat().st_size for file in saved.glob("*.safetensors"))
        data = {**done.to_dict(), "output": str(saved), "file_bytes": file_bytes, "seconds": round(seconds, 3)}
        answer(
            data, f"{done}\n\nSaved in {output}: {bytes_text(file_bytes)} of weights, {seconds:.1f} s", as_json=as_json
        )
