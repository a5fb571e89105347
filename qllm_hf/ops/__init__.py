"""The operations that kernels may speed up, and which implementation runs.

Each operation has a row of implementations, fastest first and the reference last. All of one operation
share a signature and mean the same numbers; a test runs them on the same cases. `resolve` says which
one runs for a given request, and why each of the others does not.
"""

from __future__ import annotations

from ..choices import Resolution
from .experts import expert_product
from .registry import LINEAR, Implementation, Request, linear, linear_many, prefer, resolve
from .shortcut import Shortcut

__all__ = [
    "LINEAR",
    "Implementation",
    "Request",
    "Resolution",
    "Shortcut",
    "expert_product",
    "linear",
    "linear_many",
    "prefer",
    "resolve",
]
