"""qllm_hf: how few bits can a large language model use, and what does it lose?

    import qllm_hf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(name, quantization_config=qllm_hf.QllmConfig(w=4, kv=8))
    print(qllm_hf.report(model))

Importing this package makes transformers know quant_method "qllm"; torch and transformers themselves are
imported only when something needs them.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _autoload

if TYPE_CHECKING:
    from .advice.recommend import recommend
    from .builtin import reference_model
    from .cache import QllmCache
    from .config import QllmConfig
    from .errors import (
        CacheError,
        CalibrationError,
        CheckpointError,
        ConfigError,
        MissingExtraError,
        ModelError,
        QllmError,
        QllmWarning,
        SchemeError,
    )
    from .finite import check_finite
    from .inplace import quantize_
    from .methods.sensitivity import measure_sensitivity
    from .published import published
    from .quantizer import QllmHfQuantizer
    from .reporting.model import report
    from .scheme import Scheme

__version__ = "0.1.0"

_HOME = {
    "QllmCache": "cache",
    "QllmConfig": "config",
    "QllmHfQuantizer": "quantizer",
    "Scheme": "scheme",
    "check_finite": "finite",
    "published": "published",
    "recommend": "advice.recommend",
    "measure_sensitivity": "methods.sensitivity",
    "quantize_": "inplace",
    "reference_model": "builtin",
    "report": "reporting.model",
    **dict.fromkeys(
        (
            "CacheError",
            "CalibrationError",
            "CheckpointError",
            "ConfigError",
            "MissingExtraError",
            "ModelError",
            "QllmError",
            "QllmWarning",
            "SchemeError",
        ),
        "errors",
    ),
}

__all__ = [
    "CacheError",
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "MissingExtraError",
    "ModelError",
    "QllmCache",
    "QllmConfig",
    "QllmError",
    "QllmHfQuantizer",
    "QllmWarning",
    "Scheme",
    "SchemeError",
    "check_finite",
    "measure_sensitivity",
    "published",
    "quantize_",
    "recommend",
    "reference_model",
    "report",
]

# A source tree that is on the path and not installed has qllm_kernels here. Last, so that an installed one comes first.
_kernels = Path(__file__).resolve().parents[1] / "kernels" / "torch-ext"
if _kernels.is_dir():
    sys.path.append(str(_kernels))

_autoload.install()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
