"""Makes transformers know quant_method "qllm" in programs that never import qllm_hf.

torch calls `autoload` each time it is imported (entry point group "torch.backends"). It does nothing unless the
environment variable QLLM_HF_AUTOLOAD is 1. A module of its own, because importing any part of the package registers it.
An exception here would break `import torch`, so none may leave.
"""

import os
import sys


def autoload() -> None:
    """Import qllm_hf, which registers itself, if QLLM_HF_AUTOLOAD=1."""
    try:
        if os.environ.get("QLLM_HF_AUTOLOAD") == "1":
            import qllm_hf  # noqa: F401
    except Exception as error:
        sys.stderr.write(f"qllm_hf: autoload failed: {error}\n")
