"""Modules whose weights are packed: linear layers and fused experts."""

from __future__ import annotations

from .experts import PackedExperts, expert_parameters, pack_experts_
from .linear import PackedLinear
from .parameters import PackedModule

__all__ = ["PackedExperts", "PackedLinear", "PackedModule", "expert_parameters", "pack_experts_"]
