"""Every scheme that could be chosen: its bytes, its times, and what it is expected to lose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from transformers import PreTrainedModel

from ..config import QllmConfig
from ..cost.model import ModelCost, cost_of
from ..cost.roofline import decode_seconds, prefill_seconds
from ..results import BASELINE, Results
from ..scheme import Scheme
from .evidence import expected_loss
from .loss import Loss, overall
from .merge import Recommendation
from .situation import Situation

SCHEMES: Final = (
    BASELINE,
    *("W8", "W4", "W3", "W8A8", "W4A8"),
    *("KV8", "KV4"),
    *("W8KV8", "W4KV8", "W8KV4", "W4KV4", "W3KV8"),
    *("W8A8KV8", "W4A8KV8", "W4A8KV4"),
)
"""What is always looked at; measured schemes come on top."""


class Sizes(Protocol):
    """What choosing needs to know about a model under a scheme; `ModelCost` is one."""

    @property
    def weight_bytes(self) -> int:
        """Of all parameters."""

    def kv_bytes(self, batch: int, tokens: int) -> int:
        """Of the keys and values."""

    def total_bytes(self, batch: int, tokens: int) -> int:
        """Of weights, keys and values, and states."""


@dataclass(frozen=True)
class Candidate:
    """One scheme in a situation.

    Attributes:
        scheme: such as "W4KV8", or with a method, if it was measured: "W3+gptq".
        weight_bytes, kv_bytes, total_bytes: of weights, of keys and values, and of both and states.
        fits: whether `total_bytes` are not more than the memory; true without a limit.
        losses: what it is expected to lose, by topic.
        loss: the worst of them.
        avoided: the scheme that the study says to avoid and that this is no safer than, or "".
        decode_seconds: for one more token of each sequence at the full context, at least; None without a device.
        prefill_seconds: for reading the whole context, at least.
    """

    scheme: str
    weight_bytes: int
    kv_bytes: int
    total_bytes: int
    fits: bool
    losses: tuple[Loss, ...]
    loss: Loss
    avoided: str = ""
    decode_seconds: float | None = None
    prefill_seconds: float | None = None

    def is_within(self, tolerance: float) -> bool:
        """Whether the expected loss is known and at most `tolerance` percent."""
        return self.loss.percent is not None and self.loss.percent <= tolerance

    def dominates(self, other: Candidate) -> bool:
        """Whether it is at least as good in loss, bytes and times, and better in one."""
        mine, theirs = self._marks(), other._marks()
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))

    def _marks(self) -> tuple[float, ...]:
        loss = float("inf") if self.loss.percent is None else self.loss.percent
        return loss, self.total_bytes, self.decode_seconds or 0.0, self.prefill_seconds or 0.0


def labels_for(situation: Situation, results: Results | None = None) -> tuple[str, ...]:
    """The schemes to look at: the usual ones, and those that were measured."""
    measured = () if results is None else results.schemes
    labels = dict.fromkeys((*SCHEMES, *measured))
    return tuple(label for label in labels if situation.has_kv or _scheme(label).kv == 16)


def costs_of(model: PreTrainedModel, labels: Iterable[str]) -> dict[str, ModelCost]:
    """{label: cost} of a float model on the meta device.

    Weights and cache do not know of each other, so each is counted once for all schemes that share it.
    """
    known: dict[str, ModelCost] = {}
    found = {}
    for label in labels:
        scheme = _scheme(label)
        halves = (replace(scheme, kv=16), Scheme(kv=scheme.kv, kv_group_size=scheme.kv_group_size))
        for half in map(str, halves):
            if half not in known:
                known[half] = cost_of(model, None if half == BASELINE else QllmConfig.from_scheme(half))
        weight, cache = (known[str(half)] for half in halves)
        found[label] = replace(weight, scheme=str(scheme), kv_groups=cache.kv_groups, kv_unknown=cache.kv_unknown)
    return found


def candidates(
    situation: Situation,
    costs: Mapping[str, Sizes],
    advised: Recommendation,
    results: Results | None = None,
) -> tuple[Candidate, ...]:
    """Each scheme of `costs` in a situation.

    What was measured on the very model in all topics is not avoided: the study's advice is for models like it.
    """
    found = []
    for label, cost in costs.items():
        losses = tuple(expected_loss(situation, topic, label, results) for topic in situation.topics)
        total = cost.total_bytes(situation.batch, situation.context)
        is_measured = all(loss.kind == "measured" for loss in losses)
        decode = prefill = None
        if situation.device is not None and isinstance(cost, ModelCost):
            decode = decode_seconds(cost, situation.device, situation.batch, situation.context)
            prefill = prefill_seconds(cost, situation.device, situation.batch, situation.context)
        found.append(
            Candidate(
                scheme=label,
                weight_bytes=cost.weight_bytes,
                kv_bytes=cost.kv_bytes(situation.batch, situation.context),
                total_bytes=total,
                fits=situation.memory_bytes is None or total <= situation.memory_bytes,
                losses=losses,
                loss=overall(losses),
                avoided="" if is_measured else advised.avoids(_scheme(label)),
                decode_seconds=decode,
                prefill_seconds=prefill,
            )
        )
    return tuple(found)


def pareto_front(found: Iterable[Candidate]) -> tuple[str, ...]:
    """The schemes that no other one beats: those of known loss, not avoided, whether they fit or not."""
    known = [each for each in found if each.loss.percent is not None and not each.avoided]
    return tuple(each.scheme for each in known if not any(other.dominates(each) for other in known))


def _scheme(label: str) -> Scheme:
    return Scheme.parse(label.partition("+")[0])
