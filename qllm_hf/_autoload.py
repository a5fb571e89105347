"""Registration with transformers without importing it: "qllm" is looked up, then this package is loaded.

transformers has no plug-in mechanism, so `install` watches for the import of its registry and replaces the
two registry dictionaries by ones that load `qllm_hf.quantizer` the first time "qllm" is asked for.

Programs that never import qllm_hf: see `qllm_hf_autoload.py`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

REGISTRY = "transformers.quantizers.auto"
METHOD = "qllm"


class LazyRegistry(dict[str, Any]):
    """A registry that loads qllm_hf when "qllm" is asked for."""

    _loading = False

    def _load(self) -> None:
        if not LazyRegistry._loading and not super().__contains__(METHOD):
            LazyRegistry._loading = True
            try:
                importlib.import_module("qllm_hf.quantizer")
            finally:
                LazyRegistry._loading = False

    def __contains__(self, key: object) -> bool:
        if key == METHOD:
            self._load()
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        if key == METHOD:
            self._load()
        return super().__getitem__(key)


class _Watch(importlib.abc.MetaPathFinder):
    """Lets the import of the registry happen, then makes it lazy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_then_extend(module: ModuleType) -> None:
            execute(module)
            _make_lazy(module)

        spec.loader.exec_module = execute_then_extend  # type: ignore[method-assign]
        return spec


def _make_lazy(registry: ModuleType) -> None:
    for name in ("AUTO_QUANTIZER_MAPPING", "AUTO_QUANTIZATION_CONFIG_MAPPING"):
        current = getattr(registry, name)
        if not isinstance(current, LazyRegistry):
            setattr(registry, name, LazyRegistry(current))


def install() -> None:
    """Make transformers find quant_method "qllm", now or when it is imported. Safe to call again."""
    loaded = sys.modules.get(REGISTRY)
    if loaded is not None and hasattr(loaded, "AUTO_QUANTIZATION_CONFIG_MAPPING"):
        _make_lazy(loaded)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())
