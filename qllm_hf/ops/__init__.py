"""The operations that kernels may speed up, and which implementation runs.

Each operation has a row of implementations, fastest first and the reference last. All of one operation
share a signature and mean the same numbers; a test runs them on the same cases. `resolve` says which
one runs for a given request, and why each of the others does not.
"""

from __future__ import annotations

from .experts import expert_product
from .registry import LINEAR, Implementation, Request, Resolution, linear, prefer, resolve

__all__ = ["LINEAR", "Implementation", "Request", "Resolution", "expert_product", "linear", "prefer", "resolve"]
