"""Published losses of models like the one that is asked about.

The published loss of a topic is the median over models like this one: half of them lose no more, which is what the
study means by "most models". Means follow single models: LongChat loses half of its score where others lose nothing.
Models like this are those of the same size class, and those of the same family, where the study has two of it or more;
the larger median counts, and of several benchmarks the worst one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple

from ..published.collection import Published
from ..published.models import SIZE_CLASSES
from ..published.query import published
from ..published.read import all_scores, models
from ..published.summary import LossSummary
from ..scheme import Scheme
from .loss import Loss
from .situation import Situation

BENCHMARKS: Final[Mapping[str, tuple[str, ...]]] = {
    "nlp": ("lambada",),
    "icl": ("mmlu",),
    "if": ("arc-c", "arc-e", "hellaswag"),
    "mr": ("gsm8k", "strategyqa"),
    "sc": ("mmlu-calib",),
    "trust": ("truthfulqa", "ethics", "advglue"),
    "dialogue": ("mt_bench",),
    "long": ("longeval_lines", "lost_in_the_middle"),
}
"""Which published benchmarks speak of a topic; C-Eval, of two models that have MMLU too, is left out."""
LENGTHS: Final = {"4k": 4096, "6k": 6144, "9k": 9216, "11k": 11264, "13k": 13312, "16k": 16384}
"""Tokens of the published lengths."""


def published_length(context: int) -> str:
    """The published length that speaks of a context: the next one that is not shorter, or the longest there is.

    >>> published_length(8192), published_length(100_000)
    ('9k', '16k')
    """
    return next((name for name, tokens in LENGTHS.items() if tokens >= context), "16k")


def losses_of_all(situation: Situation, benchmark: str, scheme: str) -> dict[str, float]:
    """{model: percent} of a benchmark, at the length that speaks of the situation."""
    return dict(_losses(benchmark, _part(benchmark, published_length(situation.context)), scheme))


def losses_like(situation: Situation, benchmark: str, scheme: str) -> tuple[dict[str, dict[str, float]], bool]:
    """({whose: {model: percent}}, whether all were published) of a benchmark: of the size class, and of the family.

    Where W and KV together were not published for a model, its losses with each alone are added up. Where both are
    published the sum is a little too high: over lengths W4KV4 loses 28 %, W4 and KV4 alone 6 and 26.
    """
    like = _Like.of(situation)
    return _losses_like(like, benchmark, scheme, like.size_class)


def published_loss(situation: Situation, topic: str, scheme: str) -> Loss | None:
    """The largest median loss of models like this one over the benchmarks of a topic; None if nothing was published.

    Where nothing was published of the size class, the nearest one that has something stands in, and `what` says so.
    """
    return _published_loss(_Like.of(situation), topic, scheme)


def halves(scheme: Scheme) -> tuple[str, str]:
    """A scheme's weights (and activations), and its keys and values, as schemes of their own."""
    return str(Scheme(w=scheme.w, a=scheme.a)), str(Scheme(kv=scheme.kv))


class _Like(NamedTuple):
    """What a situation has to do with published losses."""

    size_class: str
    family: str
    length: str
    tolerance: float

    @classmethod
    def of(cls, situation: Situation) -> _Like:
        return cls(situation.size_class, situation.family, published_length(situation.context), situation.tolerance)


@cache
def _published_loss(like: _Like, topic: str, scheme: str) -> Loss | None:
    for size in _nearest_classes(like.size_class):
        found = []
        for benchmark in BENCHMARKS[topic]:
            groups, is_published = _losses_like(like, benchmark, scheme, size)
            for whose, losses in groups.items():
                summary = LossSummary.of(losses.values(), like.tolerance)
                title = f"LongEval at {like.length}" if benchmark == "longeval_lines" else benchmark
                what = f"{title}, {whose}" + (f" (none {like.size_class})" if size != like.size_class else "")
                found.append(Loss(topic, summary.median, "published" if is_published else "parts", what, summary))
        if found:
            return max(found, key=lambda loss: loss.percent or 0.0)
    return None


def _losses_like(like: _Like, benchmark: str, scheme: str, size: str) -> tuple[dict[str, dict[str, float]], bool]:
    known, part = models(), _part(benchmark, like.length)
    found = _losses(benchmark, part, scheme)
    sums = {model: loss for model, loss in _from_parts(benchmark, part, scheme).items() if model not in found}
    found = {**found, **sums}
    groups = {size: {model: loss for model, loss in found.items() if known[model].size_class == size}}
    family = {model: loss for model, loss in found.items() if known[model].family == like.family}
    if len(family) > 1:
        groups[like.family] = family
    return {whose: losses for whose, losses in groups.items() if losses}, not sums


def _from_parts(benchmark: str, part: str, name: str) -> dict[str, float]:
    """{model: what W (and A) and KV lose alone, added up} for models that have both."""
    scheme = Scheme.parse(name)
    if scheme.kv == 16 or scheme.w == 16:
        return {}
    one, other = (_losses(benchmark, part, half) for half in halves(scheme))
    return {model: one[model] + other[model] for model in one if model in other}


def _nearest_classes(size: str) -> list[str]:
    """All size classes, from the nearest to the farthest."""
    names = list(SIZE_CLASSES)
    return sorted(names, key=lambda name: abs(names.index(name) - names.index(size)))


@cache
def _losses(benchmark: str, part: str, scheme: str) -> dict[str, float]:
    """{model: percent lost} of all usable models, by the study's main metric."""
    return _group(benchmark, part, scheme).losses(pooled=benchmark != "longeval_lines")


def _group(benchmark: str, part: str, scheme: str) -> Published:
    if scheme not in _schemes():
        return Published(())
    return published(benchmark=benchmark, scheme=scheme, subset=part or None, main=True).without("excluded")


@cache
def _schemes() -> frozenset[str]:
    return frozenset(score.scheme for score in all_scores())


def _part(benchmark: str, length: str) -> str:
    """Which rows of a benchmark count."""
    return f"length={length}" if benchmark == "longeval_lines" else ""
