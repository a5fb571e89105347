"""qllm-hf info: what a model is, from its config and file headers, without loading it."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .output import UsageError, answer, answering


def info(
    model: options.Model,
    scheme: options.SchemeText = None,
    dtype: options.DtypeOption = options.Dtype.auto,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all weights, and compare them with the checksums saved with them.")
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Say what a model is, or what a scheme would make of it. No weights are read, unless to verify them.

    \b
    Examples:
      qllm-hf info model-w4kv8
      qllm-hf info path/to/model --scheme W4KV4
      qllm-hf info model-w4kv8 --verify
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        config = options.make_config(scheme)
        if verify and config is not None:
            raise UsageError("--verify is about what is stored, --scheme about what could be: leave one of them out.")

        from ..checkpoint import read_checkpoint
        from ..checksums import verify as verify_checkpoint
        from ..config import QllmConfig
        from ..errors import CheckpointError, ConfigError
        from ..loading import check_stored, local_folder, model_on_meta, stored_config
        from ..preflight import check_config
        from ..reporting.model import plan_report
        from ..reporting.text import bytes_text

        stored = stored_config(model, trust_remote_code=trust_remote_code)
        if stored is not None and config is not None:
            raise ConfigError(
                f"{model!r} is quantized already ({stored.scheme}): leave out --scheme, or give the float model."
            )
        folder = local_folder(model)
        checkpoint = read_checkpoint(folder) if folder is not None and config is None else None
        if checkpoint is not None:
            check_config(checkpoint, trust_remote_code=trust_remote_code)
        elif verify:
            raise CheckpointError(f"{model!r} is no folder. Download it first: hf download {model}.")
        shapes = model_on_meta(model, dtype=dtype.value, trust_remote_code=trust_remote_code)
        if stored is not None and checkpoint is not None:
            check_stored(shapes, stored, checkpoint)
        how = config or stored or QllmConfig()
        result = plan_report(shapes, how, "planned" if config is not None else "stored")
        data, text = result.to_dict(), str(result)
        if checkpoint is not None:
            data["files"] = len(checkpoint.files)
            data["file_bytes"] = checkpoint.file_bytes
            text += f"\n\nFiles: {len(checkpoint.files)} safetensors, {bytes_text(checkpoint.file_bytes)}, complete"
        if verify and checkpoint is not None:
            compared, total = verify_checkpoint(checkpoint)
            data["verified"] = compared
            text += f"\nVerified: {compared} of {total} tensors are as they were saved"
        answer(data, text, as_json=as_json)
