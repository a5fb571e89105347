"""How events of the tabs run: in the queue of the models, or at once. Visitors reach none of them by name."""

from __future__ import annotations

from typing import Any, Final

HEAVY: Final[dict[str, Any]] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "api_visibility": "private",
    "show_progress": "hidden",
}
"""Needs a model: one at a time, first come, first served."""
LIGHT: Final[dict[str, Any]] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
"""Takes no time worth waiting for."""
