"""The scores that the study published, and the survey's speed-ups, as data.

    qllm_hf.published(ability="long", scheme="KV4")

The name of this package is also the name of its question, so the package can be called: it asks
`qllm_hf.published.query.published`.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from .collection import Published
from .query import published

__all__ = ["Published", "published"]


class _Callable(types.ModuleType):
    """A module that answers when it is called: importing any part of it hides a function of the same name."""

    def __call__(self, **question: Any) -> Published:
        return published(**question)


sys.modules[__name__].__class__ = _Callable
