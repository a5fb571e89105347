"""The models that the package carries, and the names they are reached by."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final

REFERENCE: Final = "reference"

BUILTIN: Final[dict[str, Path]] = {REFERENCE: Path(__file__).parent / "reference_model"}


def reference_model() -> str:
    """The folder of the reference model: a causal LM of 3.2 million parameters, trained on `qllm_hf.curriculum`.

    For `from_pretrained`, which knows folders and ids on the Hub; everything of this package also takes the name
    "reference". The model card is README.md in that folder.
    """
    return str(BUILTIN[REFERENCE])


def builtin_like(name: str) -> str | None:
    """The name of a built-in model that `name` is a misspelling of, or None.

    >>> builtin_like("refrence"), builtin_like("gpt2"), builtin_like("owner/reference")
    ('reference', None, None)
    """
    return next(iter(difflib.get_close_matches(name.lower(), BUILTIN, n=1, cutoff=0.8)), None)
