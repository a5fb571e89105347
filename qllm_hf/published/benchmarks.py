"""The published benchmarks as a table: which ability each measures, in which unit, and what guessing gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Whose = Literal["study", "ours"]

ABILITIES: Final = ("nlp", "emergent", "trust", "dialogue", "long")
STUDY_ABILITIES: Final = {
    "nlp": "basic_nlp",
    "emergent": "emergent",
    "trust": "trustworthiness",
    "dialogue": "dialogue",
    "long": "long_context",
}
"""Our names of the five groups, and the study's."""
EMERGENT: Final = {
    "icl": "in-context learning",
    "if": "instruction following",
    "cmr": "commonsense multi-step reasoning",
    "mmr": "mathematical multi-step reasoning",
    "sc": "self-calibration",
}
"""The emergent abilities of the study: ICL, IF, C-MR, M-MR and SC."""

SCALES: Final = {"percent": (0.0, 100.0), "fraction": (0.0, 1.0), "score_1_10": (0.0, 10.0)}
"""What 0 and 1 as parts of the best score mean in each unit."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: as in the data: "gsm8k".
        title: as people write it.
        ability: one of `ABILITIES`.
        units: {metric: unit of its values}.
        main: the metric that the study's plots, or its text, go by.
        emergent: one of `EMERGENT`; "" outside that group.
        chance: what guessing gets in the study's plots, a part of the best score; None where it plots raw values.
        our_chance: what guessing really gets, by subset or metric; "" stands for all others.
        items: questions, by subset; "" stands for all others.
        pooled: whether a model's loss is the one of its mean score over subsets, rather than the mean of their losses:
            lengths differ in difficulty, and each has a loss of its own.
    """

    name: str
    title: str
    ability: str
    units: Mapping[str, str]
    main: str
    emergent: str = ""
    chance: float | None = None
    our_chance: Mapping[str, float] = field(default_factory=lambda: {"": 0.0})
    items: Mapping[str, int] = field(default_factory=dict)
    pooled: bool = True

    def guessing(self, metric: str, subset: str, whose: Whose = "study") -> float | None:
        """What guessing gets, as a part of the best score.

        The study's own values differ from ours in StrategyQA, a yes-no question whose chance its plots take as 0; and
        they have none for trustworthiness, dialogue and long contexts, which it plots raw.
        """
        if whose == "study":
            return self.chance
        return next(self.our_chance[name] for name in (subset or metric, metric, "") if name in self.our_chance)


_ACCURACY: Final = {"accuracy": "percent"}
_FRACTION: Final = {"accuracy": "fraction"}
_AVERAGES: Final = {"accuracy_naive_avg": "percent", "accuracy_weighted_avg": "percent"}
_WEIGHTED: Final = "accuracy_weighted_avg"
_QUARTER: Final = {"": 0.25}

_ALL: Final = (
    Benchmark("lambada", "LAMBADA", "nlp", _ACCURACY, "accuracy", "", 0.0, items={"": 5153}),
    Benchmark("mmlu", "MMLU", "emergent", _AVERAGES, _WEIGHTED, "icl", 0.25, _QUARTER),
    Benchmark("ceval", "C-Eval", "emergent", _ACCURACY, "accuracy", "icl", 0.25, _QUARTER),
    Benchmark("gsm8k", "GSM8K", "emergent", _ACCURACY, "accuracy", "mmr", 0.0, items={"": 1319}),
    Benchmark("strategyqa", "StrategyQA", "emergent", _ACCURACY, "accuracy", "cmr", 0.0, {"": 0.5}, {"": 2290}),
    Benchmark("arc-c", "ARC-Challenge", "emergent", _ACCURACY, "accuracy", "if", 0.25, _QUARTER, {"": 295}),
    Benchmark("arc-e", "ARC-Easy", "emergent", _ACCURACY, "accuracy", "if", 0.25, _QUARTER, {"": 567}),
    Benchmark("hellaswag", "HellaSwag", "emergent", _ACCURACY, "accuracy", "if", 0.25, _QUARTER, {"": 10042}),
    Benchmark("mmlu-calib", "MMLU self-calibration", "emergent", _AVERAGES, _WEIGHTED, "sc", 0.5, {"": 0.5}),
    Benchmark(
        "ethics",
        "ETHICS",
        "trust",
        _FRACTION,
        "accuracy",
        our_chance={"": 0.5},
        items={"commonsense": 3885, "deontology": 3596, "justice": 2704, "virtue": 4975},
    ),
    Benchmark(
        "truthfulqa",
        "TruthfulQA",
        "trust",
        {"mc1": "fraction", "mc2": "fraction"},
        "mc1",
        our_chance={"": 0.0, "mc1": 0.23, "mc2": 0.47},
        items={"": 817},
    ),
    Benchmark(
        "advglue",
        "AdvGLUE",
        "trust",
        {"acc_before": "percent", "acc_after": "percent", "acc_drop": "fraction"},
        "acc_after",
        our_chance={"": 0.5, "adv_mnli": 1 / 3, "adv_mnli_mm": 1 / 3},
        items={"adv_mnli": 121, "adv_mnli_mm": 119, "adv_qnli": 133, "adv_qqp": 71, "adv_rte": 81, "adv_sst2": 131},
    ),
    Benchmark(
        "mt_bench",
        "MT-Bench",
        "dialogue",
        {"gpt4_score": "score_1_10"},
        "gpt4_score",
        our_chance={"": 0.1},
        items={"": 80},
    ),
    Benchmark("longeval_lines", "LongEval, lines", "long", _FRACTION, "accuracy", items={"": 500}, pooled=False),
    Benchmark(
        "lost_in_the_middle",
        "Lost in the Middle",
        "long",
        {"accuracy_best_subspan_em": "fraction"},
        "accuracy_best_subspan_em",
        items={"": 2655},
    ),
)
BENCHMARKS: Final = {benchmark.name: benchmark for benchmark in _ALL}
LOWER_IS_BETTER: Final = frozenset({"acc_drop"})
"""A loss of robustness is better when it is small; and as a ratio itself it has no relative loss."""
