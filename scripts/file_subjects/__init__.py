"""Every kind of file that qllm_hf reads beside checkpoints: how one is made, and what reads it."""

from __future__ import annotations

from . import calibrations, judges, models, results
from .reading import Subject, spoken

SUBJECTS: dict[str, Subject] = {
    **results.SUBJECTS,
    **judges.SUBJECTS,
    **calibrations.SUBJECTS,
    **models.SUBJECTS,
}
__all__ = ["SUBJECTS", "Subject", "spoken"]
