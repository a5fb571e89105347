"""Attention over packed keys and values: the operation, its implementations, and how models of transformers reach it.

A cache layer hands out `lazy(...)` rows, which read as float tensors to everyone. Where a model passes them to
scaled_dot_product_attention, `attend` takes the packed rows as they are; at any other touch they are decoded. It is the
same in a graph that torch.compile makes, where attention is one operator (`graph`).
"""

from __future__ import annotations

from ..choices import Resolution
from .lazy import LazyRows, lazy_pair
from .registry import ATTENTION, Implementation, attend, prefer, resolve
from .request import KvRows, Request

__all__ = [
    "ATTENTION",
    "Implementation",
    "KvRows",
    "LazyRows",
    "Request",
    "Resolution",
    "attend",
    "lazy_pair",
    "prefer",
    "resolve",
]
