"""A push plan as a page of text."""

from __future__ import annotations

from typing import Final

from ..reporting.text import bytes_text, table
from .plan import PushPlan

_MOST_LINES: Final = 400
_MOST_NAMES: Final = 20


def render_plan(plan: PushPlan) -> str:
    """The page that is shown before anything is sent."""
    where = f"{plan.repo}, branch {plan.revision}"
    how = (
        f"a pull request to {where}"
        if plan.opens_pull_request
        else f"a new repository {plan.repo}"
        if plan.creates_repo
        else f"a commit to {where}"
    )
    rows = [["file", "bytes", "stored as", ""]]
    rows += [[file.path, f"{file.size:,}", file.storage, file.state] for file in plan.files]
    parts = [f"Push: {how}", table(rows, "lrll")]
    if plan.card_difference:
        lines = plan.card_difference.rstrip("\n").split("\n")
        rest = [f"... {len(lines) - _MOST_LINES} more lines"] if len(lines) > _MOST_LINES else []
        parts.append("\n".join([*lines[:_MOST_LINES], *rest]))
    if plan.left_out:
        more = f" and {len(plan.left_out) - _MOST_NAMES} more" if len(plan.left_out) > _MOST_NAMES else ""
        parts.append(f"Stays here: {', '.join(plan.left_out[:_MOST_NAMES])}{more}")
    if plan.changed_results:
        parts.append("Results that change:\n" + "\n".join(f"  {each}" for each in plan.changed_results))
    parts.append(
        "Nothing to send: all of it is there."
        if plan.is_empty
        else f"To send: {bytes_text(plan.bytes_to_send)} in {len(plan.to_send)} files"
        + (f"; to delete: {', '.join(file.path for file in plan.deleted)}" if plan.deleted else "")
    )
    return "\n\n".join(parts)
