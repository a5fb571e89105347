"""Every error and warning that qllm_hf raises on purpose.

    QllmError(ValueError)
    |-- SchemeError        a scheme string, a bit-width or a group size that cannot be
    |-- ConfigError        a key or value of QllmConfig that cannot be
    |-- ModelError         a model that cannot be quantized as asked
    |-- CheckpointError    files that are missing, damaged, or of another format
    |-- CalibrationError   text or activations from which no method can choose codes
    |-- CacheError         a cache that cannot hold quantized keys and values
    |-- JudgeError         a judge that does not answer
    |-- BusyError          another process writes to the same place
    `-- MissingExtraError  an optional dependency is not installed (also an ImportError)

    QllmWarning(UserWarning)  something works, but not as the user may believe

Messages say what was given, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QllmError(ValueError):
    """Base of all errors of this package."""


class SchemeError(QllmError):
    """A scheme string, a bit-width or a group size that cannot be."""


class ConfigError(QllmError):
    """A key or value of QllmConfig that cannot be."""


class ModelError(QllmError):
    """A model that cannot be quantized as asked."""


class CheckpointError(QllmError):
    """Files that are missing, damaged, or of another format."""


class CalibrationError(QllmError):
    """Text or activations from which no method can choose codes."""


class CacheError(QllmError):
    """A cache that cannot hold quantized keys and values."""


class JudgeError(QllmError):
    """A judge that does not answer."""


class BusyError(QllmError):
    """Another process writes to the same place."""


class MissingExtraError(QllmError, ImportError):
    """An optional dependency is not installed."""


class QllmWarning(UserWarning):
    """Something works, but not as the user may believe."""


def did_you_mean(given: str, allowed: Iterable[str], aliases: dict[str, str] | None = None) -> str:
    """` Did you mean 'kv'?` or an empty string: the allowed word closest to what was given.

    `aliases` maps words that other libraries use (`kv_bits`) to ours (`kv`), where spelling alone
    would not find them.

    >>> did_you_mean("group_sise", ["group_size", "bits"])
    " Did you mean 'group_size'?"
    """
    candidates = list(allowed)
    match = (aliases or {}).get(given)
    if match is None:
        match = next(iter(difflib.get_close_matches(given, candidates, n=1, cutoff=0.6)), None)
    return f" Did you mean {match!r}?" if match else ""
