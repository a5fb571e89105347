"""Modules whose weights are packed: linear layers and fused experts."""

from __future__ import annotations

from .experts import PackedExperts, expert_parameters, pack_experts_
from .linear import PackedLinear
from .parameters import PackedModule
from .siblings import Siblings

__all__ = ["PackedExperts", "PackedLinear", "PackedModule", "Siblings", "expert_parameters", "pack_experts_"]
