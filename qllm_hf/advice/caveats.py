"""Where the study's advice and its own numbers disagree, each said only where it matters; numbers are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from ..published.collection import Published
from ..published.query import published
from ..scheme import Scheme
from .like import LENGTHS, published_length, published_loss
from .rules import BORDER_B, rules_for
from .situation import Situation


@dataclass(frozen=True)
class Disagreement:
    """One of them.

    Attributes:
        id: "a" to "e", or a rule's id.
        text: what is advised, what the data says, with numbers.
    """

    id: str
    text: str


def _dialogue_kv4() -> str:
    rows = published(benchmark="mt_bench", scheme="KV4").where(lambda row: row.family != "Mamba")
    summary = rows.summary(2.0, pooled=True)
    assert summary is not None
    return (
        f"R5 allows KV4 in dialogue (loss below 2 %), but only {summary.within} of {summary.models} models stay within "
        f"2 %, and the mean loss is {summary.mean:.1f} %."
    )


def _mathematics() -> str:
    rows = published(benchmark="gsm8k", scheme="W4", params=(13, None))
    points = fmean(row.points_lost for row in rows)
    relative = fmean(rows.losses().values())
    return (
        f"R4 allows W4 above 13B for multi-step reasoning, but on GSM8K {len(rows)} models of 13B and more lose "
        f"{points:.1f} points at W4, {relative:.1f} % of their score."
    )


def _order_of_abilities() -> str:
    eight = [model for model in published(benchmark="mmlu-calib").models if model != "Falcon-7B"]

    def kept(benchmark: str, **kwargs: str) -> float:
        rows = published(benchmark=benchmark, scheme="W3", main=True, model=eight)
        return rows.mean_normalised(kwargs.get("chance", "study"))  # type: ignore[arg-type]

    return (
        "F7 says that multi-step reasoning bears less than in-context learning. With the study's chance level of 0, "
        f"StrategyQA keeps {kept('strategyqa'):.2f} at W3 and MMLU {kept('mmlu'):.2f}; only with the 50 that guessing "
        f"gets on yes-no questions it keeps less, {kept('strategyqa', chance='ours'):.2f}."
    )


def _longchat() -> str:
    losses = published(family="LongChat", scheme="KV8", benchmark="longeval_lines", subset="length=16k").losses()
    listed = " and ".join(f"{model} {loss:.0f} %" for model, loss in losses.items())
    others = _lines("KV8", "length=16k").where(lambda row: row.family != "LongChat").losses()
    return (
        f"R6 allows KV8 for long contexts, but at 16k tokens it costs {listed} (the other {len(others)} models at most "
        f"{max(others.values()):.0f} %)."
    )


def _failed_run() -> str:
    def mean(scheme: str) -> float:
        rows = published(benchmark="advglue", metric="acc_before", model="LLaMA2-70B-chat", scheme=scheme)
        return fmean(row.value for row in rows)

    return (
        f"AdvGLUE of LLaMA2-70B-chat falls from {mean('FP16'):.0f} to {mean('KV8'):.0f} at KV8 on the originals: a "
        "failed run, left out of all means here."
    )


def _lines(scheme: str, subset: str) -> Published:
    return published(benchmark="longeval_lines", scheme=scheme, subset=subset).without("excluded")


@dataclass(frozen=True)
class Caveat:
    """A known disagreement.

    Attributes:
        id: its letter.
        concerns: whether it matters in a situation.
        text: the sentence, computed.
        about: the rule and the bits that it is about, which then need no sentence of their own.
    """

    id: str
    concerns: Callable[[Situation], bool]
    text: Callable[[], str]
    about: tuple[str, str] = ("", "")


CAVEATS: Final = (
    Caveat("a", lambda each: "dialogue" in each.topics and each.has_kv, _dialogue_kv4, ("R5", "KV4")),
    Caveat("b", lambda each: "mr" in each.topics and each.size_b > BORDER_B, _mathematics, ("R4", "W4")),
    Caveat("c", lambda each: {"mr", "icl"} <= set(each.topics), _order_of_abilities),
    Caveat("d", lambda each: _is_beyond_6k(each) and each.has_kv, _longchat, ("R6", "KV8")),
    Caveat(
        "e",
        lambda each: (
            "trust" in each.topics and each.has_kv and (each.family == "LLaMA2" or each.size_class == "13B and above")
        ),
        _failed_run,
    ),
)


def disagreements(situation: Situation) -> tuple[Disagreement, ...]:
    """The known ones that matter here, and each rule whose bits cost models like this more than the tolerance."""
    known = [each for each in CAVEATS if each.concerns(situation)]
    found = [Disagreement(each.id, each.text()) for each in known]
    said = {each.about for each in known}
    for rule in rules_for(situation):
        worst = [
            text
            for scheme in (rule.w, rule.wa, rule.kv, rule.joint)
            if (rule.id, scheme) not in said and (text := _excess(situation, rule.topics, scheme))
        ]
        if worst:
            text = f"{rule.id} allows {', '.join(worst)}, medians above {situation.tolerance:g} % for models like this."
            found.append(Disagreement(rule.id, text))
    if situation.context > max(LENGTHS.values()):
        found.append(
            Disagreement(
                "length",
                f"Nothing was published for more than 16k tokens. At {situation.context:,} tokens expect more loss "
                "than the numbers for 16k say.",
            )
        )
    return tuple(found)


def _excess(situation: Situation, topics: tuple[str, ...], scheme: str | None) -> str:
    """What a recommended scheme costs models like this one, if that is more than the tolerance."""
    if scheme is None or (Scheme.parse(scheme).kv < 16 and not situation.has_kv):
        return ""
    losses = [
        loss
        for topic in topics
        if topic in situation.topics and (loss := published_loss(situation, topic, scheme)) is not None
    ]
    worst = max(losses, key=lambda loss: loss.percent or 0.0, default=None)
    if worst is None or worst.percent is None or worst.summary is None or worst.percent <= situation.tolerance:
        return ""
    return f"{scheme} ({worst.percent:.1f} %, {worst.what})"


def _is_beyond_6k(situation: Situation) -> bool:
    return "long" in situation.topics and published_length(situation.context) not in ("4k", "6k")
