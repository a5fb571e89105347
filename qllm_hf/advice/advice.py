"""The answer to "how few bits can I use": one scheme, why, and everything it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ..published.names import study_model
from ..results import Results
from ..scheme import Scheme
from .candidates import Candidate, Sizes, pareto_front
from .caveats import Disagreement, disagreements
from .changes import Change, changes, decide
from .choose import Choice
from .like import BENCHMARKS, losses_of_all, published_loss
from .loss import Loss
from .merge import Recommendation, adjust, merge
from .rules import Modifier, Rule, modifiers_for, rules_for
from .situation import Situation

SHOWN_SCHEMES: Final = ("W8", "W4", "W8A8", "W4A8", "KV8", "KV4")
"""Whose published losses are shown."""


@dataclass(frozen=True)
class Advice:
    """What is advised in a situation.

    Attributes:
        situation: the question.
        rules, modifiers: of the study, that apply.
        published: their recommendations together, as they stand.
        advised: the same after the modifiers.
        losses: {scheme: {topic: published loss of models like this}}.
        own: {scheme: {benchmark: percent}} where the study has this very model.
        candidates: every scheme that was looked at.
        front: those that no other one beats in loss, bytes and times.
        choice: the one.
        why: sentences.
        changes: what would lead to another choice.
        disagreements: between the study's advice and its data, or its data and this situation.
        notes: assumptions.
        measured: the folder whose results were used, or "".
    """

    situation: Situation
    rules: tuple[Rule, ...]
    modifiers: tuple[Modifier, ...]
    published: Recommendation
    advised: Recommendation
    losses: Mapping[str, Mapping[str, Loss]]
    own: Mapping[str, Mapping[str, float]]
    candidates: tuple[Candidate, ...]
    front: tuple[str, ...]
    choice: Choice
    why: tuple[str, ...]
    changes: tuple[Change, ...]
    disagreements: tuple[Disagreement, ...]
    notes: tuple[str, ...] = ()
    measured: str = ""

    @property
    def scheme(self) -> str:
        """The chosen scheme, or "" if none fits."""
        return self.choice.chosen.scheme if self.choice.chosen else ""

    def candidate(self, scheme: str) -> Candidate:
        """One of the candidates, by its scheme.

        Raises:
            KeyError: it was not looked at.
        """
        return {each.scheme: each for each in self.candidates}[scheme]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        situation = asdict(self.situation)
        situation["device"] = self.situation.device.name if self.situation.device else None
        situation |= {"topics": list(self.situation.topics), "size_b": self.situation.size_b}
        choice = self.choice
        return {
            "scheme": self.scheme or None,
            "is_within_tolerance": choice.is_within,
            "nearest": choice.nearest.scheme if choice.nearest else None,
            "missing_bytes": choice.missing_bytes,
            "why": list(self.why),
            "situation": situation,
            "rules": [asdict(rule) | {"up_to_b": rule.up_to_b if rule.up_to_b < 1e6 else None} for rule in self.rules],
            "modifiers": [asdict(modifier) for modifier in self.modifiers],
            "published": asdict(self.published),
            "advised": asdict(self.advised),
            "published_losses": {
                scheme: {topic: asdict(loss) for topic, loss in of.items()} for scheme, of in self.losses.items()
            },
            "published_losses_of_this_model": {scheme: dict(of) for scheme, of in self.own.items()},
            "candidates": [asdict(each) | {"on_front": each.scheme in self.front} for each in self.candidates],
            "changes": [_renamed(asdict(change)) for change in self.changes],
            "disagreements": [asdict(each) for each in self.disagreements],
            "notes": list(self.notes),
            "measured": self.measured or None,
        }

    def __str__(self) -> str:
        from .text import render

        return render(self)


def advise(
    situation: Situation,
    costs: Mapping[str, Sizes],
    results: Results | None = None,
    notes: tuple[str, ...] = (),
) -> Advice:
    """The advice in a situation, from what a model costs under each scheme that may be chosen.

    Source: recommendations R1 to R7 and findings of Qllm-Eval (arXiv 2402.18158), and its published numbers.
    """
    rules = rules_for(situation)
    published = merge(rules)
    advised = adjust(published, situation)
    found, choice = decide(situation, costs, results)
    return Advice(
        situation=situation,
        rules=rules,
        modifiers=modifiers_for(situation),
        published=published,
        advised=advised,
        losses=_losses(situation),
        own=_own(situation),
        candidates=found,
        front=pareto_front(found),
        choice=choice,
        why=_why(situation, advised, found, choice),
        changes=changes(situation, costs, results),
        disagreements=disagreements(situation),
        notes=notes,
        measured="" if results is None else str(Path(results.folder)),
    )


def _renamed(change: dict[str, Any]) -> dict[str, Any]:
    """`if` is a word of Python, and the right one elsewhere."""
    return {key.rstrip("_"): value for key, value in change.items()}


def _losses(situation: Situation) -> dict[str, dict[str, Loss]]:
    found: dict[str, dict[str, Loss]] = {}
    for scheme in SHOWN_SCHEMES:
        if "KV" in scheme and not situation.has_kv:
            continue
        of = {
            topic: loss for topic in situation.topics if (loss := published_loss(situation, topic, scheme)) is not None
        }
        if of:
            found[scheme] = of
    return found


def _own(situation: Situation) -> dict[str, dict[str, float]]:
    """What the study published of this very model."""
    name = study_model(situation.model) if situation.model else None
    if name is None:
        return {}
    found: dict[str, dict[str, float]] = {}
    for topic in situation.topics:
        for benchmark in BENCHMARKS[topic]:
            for scheme in SHOWN_SCHEMES:
                loss = losses_of_all(situation, benchmark, scheme).get(name)
                if loss is not None:
                    found.setdefault(scheme, {})[benchmark] = loss
    return found


def _why(
    situation: Situation, advised: Recommendation, found: tuple[Candidate, ...], choice: Choice
) -> tuple[str, ...]:
    allowed = [each for each in found if not each.avoided]
    limit = f"{situation.tolerance:g} %"
    chosen = choice.chosen
    if chosen is None:
        assert choice.nearest is not None
        return (
            f"Nothing fits: the smallest scheme that is not advised against, {choice.nearest.scheme}, lacks "
            f"{choice.missing_bytes / 1e9:,.2f} GB.",
        )
    fitting = [each for each in allowed if each.fits]
    within = [each for each in fitting if each.is_within(situation.tolerance)]
    if choice.is_within:
        reasons = [
            f"Of {len(found)} schemes, {len(allowed)} are not advised against, {len(fitting)} of them fit, and "
            f"{len(within)} of these are expected within {limit}. Of these the choice takes the least memory."
        ]
    else:
        reasons = [
            f"No scheme that fits is known to lose at most {limit}. Of the {len(fitting)} that fit and are not advised "
            "against, it loses least; think twice."
        ]
    loss = chosen.loss
    reasons.append(_evidence(loss, situation.tolerance))
    bits = _scheme_of(chosen)
    if bits is not None and bits != Scheme():
        reasons.append(_beside_rules(bits, advised))
    return tuple(reasons)


def _beside_rules(bits: Scheme, advised: Recommendation) -> str:
    """How a choice stands to the study's advice."""
    halves = (Scheme(w=bits.w, a=bits.a), Scheme(kv=bits.kv))
    shown = ", ".join(text for text in (advised.w, advised.wa, advised.kv, advised.joint) if text)
    if advised.covers(bits):
        return f"The study advises these bits, or fewer ({shown})."
    if not advised.joint and all(half == Scheme() or advised.covers(half) for half in halves):
        return f"The study advises each part, or fewer bits ({shown}), and says nothing of both together."
    return f"The study advises other bits ({shown or 'none'}): numbers went before rules."


def _evidence(loss: Loss, tolerance: float) -> str:
    """What the worst expected loss of a choice rests on."""
    error = "" if loss.stderr is None else f", +- {loss.stderr:.1f}"
    how = {
        "baseline": "is none: it is the float model",
        "measured": f"was measured on this model{error} ({loss.what})",
        "published": f"is the median of what was published for models like this ({loss.what})",
        "parts": f"is added up from W and KV alone ({loss.what})",
        "rule": f"is the study's threshold ({loss.what})",
    }.get(loss.kind, "is not known")
    text = f"Its worst expected loss, {loss.percent:.1f} %, {how}"
    if loss.summary is None:
        return f"{text}."
    more = loss.summary.models - loss.summary.within
    return f"{text}; {more} of {loss.summary.models} lose more than {tolerance:g} %, at most {loss.summary.high:.1f} %."


def _scheme_of(candidate: Candidate) -> Scheme | None:
    """The bits of a scheme without a method; with one, the study's advice is about something else."""
    name, plus, _ = candidate.scheme.partition("+")
    return None if plus else Scheme.parse(name)
