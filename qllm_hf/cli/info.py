"""qllm-hf info: what a model is, from its config and file headers, without loading it."""

from __future__ import annotations

from . import options
from .output import answer, answering


def info(
    model: options.Model,
    scheme: options.SchemeText = None,
    dtype: options.DtypeOption = options.Dtype.auto,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Say what a model is, or what a scheme would make of it. No weights are read.

    \b
    Examples:
      qllm-hf info model-w4kv8
      qllm-hf info path/to/model --scheme W4KV4
    """
    with answering(as_json=as_json, quiet=quiet, debug=debug):
        config = options.make_config(scheme)

        from ..checkpoint import read_checkpoint
        from ..config import QllmConfig
        from ..errors import ConfigError
        from ..loading import check_stored, config_dict, local_folder, model_on_meta, quantization_of
        from ..reporting.model import plan_report
        from ..reporting.text import bytes_text

        stored = quantization_of(config_dict(model, trust_remote_code=trust_remote_code))
        if stored is not None and config is not None:
            raise ConfigError(
                f"{model!r} is quantized already ({stored.scheme}): leave out --scheme, or give the float model."
            )
        folder = local_folder(model)
        checkpoint = read_checkpoint(folder) if folder is not None and config is None else None
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
        answer(data, text, as_json=as_json)
