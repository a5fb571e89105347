"""The only place that looks at the version of transformers. Each shim says when it can go."""

from __future__ import annotations

import transformers
from packaging.version import Version
from transformers import cache_utils
from transformers.quantizers.base import HfQuantizer
from transformers.utils import hub

from .errors import ModelError

OLDEST, FIRST_UNTESTED = Version("5.17"), Version("5.24")


def check_transformers() -> None:
    """Raises ModelError for a transformers older than the oldest supported release."""
    if Version(transformers.__version__) < OLDEST:
        raise ModelError(
            f"qllm_hf supports transformers from {OLDEST} up, this is {transformers.__version__}. "
            f"Run: pip install 'transformers>={OLDEST},<{FIRST_UNTESTED}'"
        )


# Layers that quantize on their own: QuantizedLayer everywhere, its base and the fp8 layer from 5.21.
SELF_QUANTIZING_LAYERS: tuple[type, ...] = tuple(
    getattr(cache_utils, name)
    for name in ("QuantizedLayer", "BaseQuantizedLayer", "Fp8QuantizedLayer")
    if hasattr(cache_utils, name)
)

# Which commit of the Hub files are loaded from; before 5.18 a config knows it. Drop when that is the oldest release.
resolve_revision = getattr(hub, "resolve_revision", None)

# Before 5.21 nobody calls `update_parallel_plan`; drop when the oldest supported release is 5.21.
PARALLEL_PLAN_IS_UPDATED_FOR_US = hasattr(HfQuantizer, "update_parallel_plan")
