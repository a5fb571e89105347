"""Advice as a page of plain text, no line wider than 100 columns."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from ..reporting.text import WIDTH, bytes_text, table
from .candidates import Candidate
from .loss import Loss
from .merge import Recommendation
from .rules import BORDER_B, BORDER_NOTE, Rule
from .situation import TOPICS

if TYPE_CHECKING:
    from .advice import Advice

_NONE = "-"
_FEW = 3
"""Topics whose losses fit on a line with their whole spread."""
_MOST = 10
"""Schemes on the page."""
_ALWAYS = ("FP16", "W8", "W4", "KV8")
"""Schemes that the page shows even if others beat them."""


def render(advice: Advice) -> str:
    """The page that `print(advice)` shows."""
    parts = [
        _question(advice),
        _answer(advice),
        _rules(advice),
        _published(advice),
        _measured(advice),
        _candidates(advice),
        _bullets("Where advice and data disagree", [f"({each.id}) {each.text}" for each in advice.disagreements]),
        _bullets("What would change it", _changes(advice)),
        _wrapped(f"Assumed: {' '.join(advice.notes)}", "") if advice.notes else "",
    ]
    return "\n\n".join(part for part in parts if part)


def size_text(size: int) -> str:
    """A size in GB of 10^9 bytes and in GiB of 2^30, since both are called gigabytes.

    >>> size_text(24_000_000_000)
    '24.00 GB (22.35 GiB)'
    """
    return f"{size / 1e9:,.2f} GB ({size / 2**30:,.2f} GiB)" if size >= 10**9 else bytes_text(size)


def _question(advice: Advice) -> str:
    situation = advice.situation
    size = f"{_count(situation.params_b)} parameters{' with experts' * situation.moe}"
    name = f"{situation.model} ({size})" if situation.model else size
    topics = ", ".join(TOPICS[topic] for topic in situation.topics)
    where = [f"{situation.batch} x {situation.context:,} tokens"]
    if situation.memory_bytes is not None:
        where.append(f"in {size_text(situation.memory_bytes)}")
    if situation.device is not None:
        where.append(f"on {situation.device.name}")
    return _wrapped(f"{name}: {topics}; {' '.join(where)}", "")


def _count(billions: float) -> str:
    return f"{billions:.3g}B" if billions >= 0.1 else f"{billions * 1000:.3g}M"


def _answer(advice: Advice) -> str:
    chosen = advice.choice.chosen
    if chosen is None:
        title = "Choice: none"
    else:
        title = f"Choice: {chosen.scheme}, {size_text(chosen.total_bytes)}, expected loss {_loss(chosen)} %"
        if not advice.choice.is_within:
            title += ", more than the tolerance"
    return "\n".join([title, *(_wrapped(reason) for reason in advice.why)])


def _rules(advice: Advice) -> str:
    lines = [["", "W", "WA", "KV", "joint", "avoid", "findings", "sources"]]
    lines += [[_short(rule), *_bits(rule), " ".join(rule.avoid), *_tags(rule)] for rule in advice.rules]
    if len(advice.rules) > 1:
        lines.append(["together", *_bits(advice.published), " ".join(advice.published.avoid), "", ""])
    if advice.advised != advice.published:
        lines.append(["here", *_bits(advice.advised), " ".join(advice.advised.avoid), "", ""])
    page = [f"The study's advice: the fewest bits\n{table(lines, 'llllllll')}"]
    page += [_wrapped(modifier.text) for modifier in advice.modifiers if modifier.id != "strictest"]
    if advice.situation.size_b == BORDER_B:
        page += [_wrapped(f"{rule.id}: {rule.note}.") for rule in advice.rules if BORDER_NOTE in rule.note]
    return "\n".join(page)


def _short(rule: Rule) -> str:
    size = f" <= {rule.up_to_b:g}B" if rule.up_to_b < 1e6 else f" > {rule.above_b:g}B" if rule.above_b else ""
    return f"{rule.id} {', '.join(rule.topics)}{size}"


def _bits(found: Rule | Recommendation) -> list[str]:
    return [getattr(found, kind) or _NONE for kind in ("w", "wa", "kv", "joint")]


def _tags(rule: Rule) -> list[str]:
    return [" ".join(rule.findings), ", ".join(rule.sources)]


def _published(advice: Advice) -> str:
    if not advice.losses:
        return ""
    topics = [topic for topic in advice.situation.topics if any(topic in of for of in advice.losses.values())]
    is_short = len(topics) > _FEW
    lines = [["", *topics]]
    for scheme, of in advice.losses.items():
        lines.append([scheme, *(_spread(of.get(topic), is_short) for topic in topics)])
    of_whom = f"{advice.situation.size_class}{' and ' + advice.situation.family if advice.situation.family else ''}"
    how = "median (max)" if is_short else "median / mean (min..max), n models"
    page = [f"Published losses in % ({of_whom}): {how}", table(lines, "l" * (1 + len(topics)))]
    page += _own(advice)
    return "\n".join(page)


def _spread(loss: Loss | None, is_short: bool) -> str:
    if loss is None or loss.summary is None:
        return _NONE
    each = loss.summary
    low, high = round(each.low) + 0, round(each.high) + 0
    if is_short:
        return f"{_plain(each.median)} ({high})"
    return f"{_plain(each.median)} / {_plain(each.mean)} ({low}..{high}) n={each.models}"


def _plain(value: float) -> str:
    """With one digit, and no minus before 0."""
    return f"{round(value, 1) + 0:.1f}"


def _own(advice: Advice) -> list[str]:
    """The very model's own values, for the benchmarks of the page."""
    texts = []
    for scheme, of in advice.own.items():
        if scheme in ("W4", "W4A8", "KV8", "KV4"):
            texts.append(f"{scheme} " + ", ".join(f"{loss:.1f} in {name}" for name, loss in of.items()))
    return [_wrapped(f"This very model: {'; '.join(texts)}.")] if texts and len(advice.situation.topics) <= 3 else []


def _measured(advice: Advice) -> str:
    """What the given results say, with standard errors."""
    rows = [each for each in advice.candidates if any(loss.kind == "measured" for loss in each.losses)]
    if not rows:
        return ""
    topics = [topic for topic in advice.situation.topics if any(_of(each, topic).kind == "measured" for each in rows)]
    lines = [["", *topics], *([each.scheme, *(_with_error(_of(each, topic)) for topic in topics)] for each in rows)]
    title = _wrapped(
        f"Measured losses in % of the score above guessing ({advice.measured}): mean +- standard error", ""
    )
    return f"{title}\n{table(lines, 'l' * (1 + len(topics)))}"


def _of(candidate: Candidate, topic: str) -> Loss:
    return next(loss for loss in candidate.losses if loss.topic == topic)


def _with_error(loss: Loss) -> str:
    if loss.kind != "measured" or loss.percent is None:
        return _NONE
    return _plain(loss.percent) + ("" if loss.stderr is None else f" +- {loss.stderr:.1f}")


def _candidates(advice: Advice) -> str:
    situation = advice.situation
    has_times = any(each.decode_seconds is not None for each in advice.candidates)
    has_limit = situation.memory_bytes is not None
    head = ["", "weights", "cache", "total", *(["fits"] * has_limit)]
    head += ["decode", "prefill"] if has_times else []
    lines = [[*head, "loss %", "known from", ""]]
    allowed = [each for each in advice.candidates if not each.avoided]
    shown = sorted(allowed, key=lambda each: _rank(advice, each))[:_MOST]
    for each in sorted(shown, key=lambda each: -each.total_bytes):
        fits = ["yes" if each.fits else "no"] * has_limit
        sizes = [bytes_text(size) for size in (each.weight_bytes, each.kv_bytes, each.total_bytes)]
        times = [_time(each.decode_seconds), _time(each.prefill_seconds)] if has_times else []
        remark = "front" if each.scheme in advice.front else ""
        if each.scheme == advice.scheme:
            remark = f"<- {remark}".rstrip()
        lines.append([each.scheme, *sizes, *fits, *times, _loss(each), each.loss.kind, remark])
    title = f"Schemes at {situation.batch} x {situation.context:,} tokens"
    if has_times:
        title += "; decode per step, prefill of all, both at least"
    page = f"{title}\n{table(lines, 'lrrr' + 'l' * has_limit + 'rr' * has_times + 'rll')}"
    avoided = [f"{each.scheme} (as {each.avoided})" for each in advice.candidates if each.avoided]
    more = [each.scheme for each in allowed if each not in shown]
    rest = [f"looked at as well: {', '.join(more)}"] if more else []
    rest += [f"advised against: {', '.join(avoided)}"] if avoided else []
    return "\n".join([page, *map(_wrapped, rest)])


def _rank(advice: Advice, each: Candidate) -> tuple[bool, ...]:
    """Which schemes the page shows first: the chosen one, the plain ones, those that fit, those on the front."""
    return (
        each.scheme != advice.scheme,
        each.scheme not in _ALWAYS,
        each.loss.kind != "measured",
        not each.fits,
        each.scheme not in advice.front,
    )


def _loss(candidate: Candidate) -> str:
    loss = candidate.loss
    if loss.percent is None:
        return "?"
    return f"<{loss.percent:.1f}" if loss.kind == "rule" else _plain(loss.percent)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _changes(advice: Advice) -> list[str]:
    texts = []
    for change in advice.changes:
        if change.loss is None or change.total_bytes is None:
            then = "nothing fits"
        else:
            then = f"{change.scheme} ({size_text(change.total_bytes)}, loss {_plain(change.loss)} %)"
        texts.append(f"{change.if_}: {then}")
    if not texts:
        return ["Nothing that was tried: memory, context, batch, tolerance, abilities."]
    return texts


def _bullets(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    return "\n".join(
        [title, *(textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in lines)]
    )


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
