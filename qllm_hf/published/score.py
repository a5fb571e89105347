"""One published value, and what follows from it and its FP16 value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .anomalies import ANOMALIES
from .benchmarks import BENCHMARKS, LOWER_IS_BETTER, SCALES, Whose
from .models import size_class


@dataclass(frozen=True)
class PublishedScore:
    """One value that the study published.

    Attributes:
        ability: nlp, emergent, trust, dialogue or long.
        benchmark: such as "gsm8k".
        subset: a part of it, such as "length=16k" or "round1"; "" if it has none.
        metric: what the value is.
        model, family: as the study names them.
        params_b: all parameters, in billions.
        size_b: the dense size it behaves like, in billions (7 for Mixtral-8x7B).
        scheme: canonical: "FP16", "W4A8", "KV4"; "W3-awq" where AWQ came before rounding, which else is to nearest.
        value: the score, in `unit`.
        fp16: the score of the float model in the same place.
        unit: "percent" (0 to 100), "fraction" (0 to 1) or "score_1_10".
        source: the file in the study's repository.
        flags: ids of what is odd about it (`qllm_hf.published.anomalies`).
    """

    ability: str
    benchmark: str
    subset: str
    metric: str
    model: str
    family: str
    params_b: float
    size_b: float
    scheme: str
    value: float
    fp16: float
    unit: str
    source: str
    flags: tuple[str, ...] = ()

    @property
    def emergent(self) -> str:
        """The emergent ability (icl, if, cmr, mmr, sc), or ""."""
        return BENCHMARKS[self.benchmark].emergent

    @property
    def is_main(self) -> bool:
        """Whether it is the metric that the study goes by."""
        return BENCHMARKS[self.benchmark].main == self.metric

    @property
    def size_class(self) -> str:
        """Such as "6B to 13B", by `size_b`."""
        return size_class(self.size_b)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of its flags: excluded, imputed, suspicious, ..."""
        return frozenset(ANOMALIES[flag].kind for flag in self.flags)

    @property
    def relative_loss(self) -> float | None:
        """Percent of the FP16 value that is lost; negative if the quantized model scored higher.

        None for a metric that is a loss itself, and where the float model scored 0.
        """
        if self.metric in LOWER_IS_BETTER or self.fp16 == 0:
            return None
        return 100 * (self.fp16 - self.value) / self.fp16

    @property
    def points_lost(self) -> float:
        """FP16 minus this value, in hundredths of the best score (for MT-Bench in tenths of a rating point)."""
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        return sign * 100 * (self.fp16 - self.value) / SCALES[self.unit][1]

    def chance(self, whose: Whose = "study") -> float | None:
        """What guessing gets, in `unit`: the study's value, None where it has none, or ours."""
        part = BENCHMARKS[self.benchmark].guessing(self.metric, self.subset, whose)
        return None if part is None else part * SCALES[self.unit][1]

    def normalised(self, chance: Whose | float = "study") -> float | None:
        """What is left of the float model's lead over guessing: max((q - chance) / (fp16 - chance), 0); 1 is all of it.

        Args:
            chance: "study" for the values of its plots, "ours" for what guessing really gets (StrategyQA 50 instead of
                0, and values for benchmarks that the study plots raw), or a number in `unit`.

        None where there is no chance level, where the float model is not above it, and for a metric that is a loss.

        Source: plot_ability.py of Qllm-Eval.
        """
        level = self.chance(chance) if isinstance(chance, str) else float(chance)
        if level is None or self.metric in LOWER_IS_BETTER or self.fp16 <= level:
            return None
        return max((self.value - level) / (self.fp16 - level), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; `flags` is a list of ids, and `relative_loss` is among them."""
        return {
            "ability": self.ability,
            "benchmark": self.benchmark,
            "subset": self.subset,
            "metric": self.metric,
            "model": self.model,
            "family": self.family,
            "params_b": self.params_b,
            "size_b": self.size_b,
            "scheme": self.scheme,
            "value": self.value,
            "fp16": self.fp16,
            "relative_loss": self.relative_loss,
            "normalised": self.normalised(),
            "unit": self.unit,
            "flags": list(self.flags),
            "source": self.source,
        }
