"""The recommender as a form: from what a visitor fills in to advice, and to a page that shows what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..advice.advice import Advice
from ..advice.candidates import Candidate
from ..advice.recommend import recommend
from ..advice.situation import TOPICS
from ..advice.text import size_text
from ..cost.devices import DEVICES
from ..cost.typical import typical_model
from ..figures.memory import size_curves
from ..loading import model_on_meta
from ..page.html import folded, table, text
from ..reporting.kv import kv_report
from ..reporting.text import bytes_text
from ..results import BASELINE, Size
from ..scheme import Scheme
from .host import Host
from .pictures import picture

ABILITIES: Final = {
    "Basic language (nlp)": "nlp",
    "Reasoning and instructions (emergent)": "emergent",
    "Trustworthiness (trust)": "trust",
    "Dialogue": "dialogue",
    "Long context": "long",
}
"""{name on the form: ability}"""
ANY_DEVICE: Final = "Not said"
DEVICE_NAMES: Final = (ANY_DEVICE, *(device.name for device in DEVICES))
_DRAWN: Final = (BASELINE, "W8", "W4", "KV4", "W4KV4")
"""Schemes whose memory is drawn beside the chosen one."""
_KNOWN_FROM: Final = {
    "baseline": "float model",
    "measured": "measured",
    "published": "published",
    "parts": "W and KV added",
    "rule": "the study's rule",
}


@dataclass(frozen=True)
class Form:
    """What was filled in; a model goes before a size.

    Attributes:
        model: a name as on the page, or "".
        params: billions of parameters, where there is no model.
        context, memory, tolerance: as on the command line: "16k", "24GB" or "", "2%".
        measured: the name of results that the page offers, or "".
    """

    model: str = ""
    params: float = 7.0
    moe: bool = False
    abilities: Sequence[str] = ("all",)
    context: str = "2048"
    batch: int = 1
    memory: str = ""
    device: str = ANY_DEVICE
    tolerance: str = "2%"
    measured: str = ""


def advice_for(host: Host, form: Form) -> Advice:
    """What is advised.

    Raises:
        QllmError: a value that cannot be; as `recommend`.
    """
    name = form.model.strip()
    return recommend(
        host.model(name) if name else None,
        params=None if name else form.params,
        moe=form.moe and not name,
        abilities=tuple(ABILITIES.get(each, each) for each in form.abilities) or ("all",),
        context=str(form.context).strip(),
        batch=int(form.batch),
        memory=form.memory.strip() or None,
        device=None if form.device in ("", ANY_DEVICE) else form.device,
        measured=host.result(form.measured).folder if form.measured else None,
        tolerance=str(form.tolerance).strip(),
    )


def sizes_for(host: Host, form: Form, advice: Advice) -> dict[str, Size]:
    """What some schemes take at any length, the chosen one among them; {} where no keys and values are kept."""
    name = form.model.strip()
    shapes = model_on_meta(host.model(name)) if name else typical_model(form.params, form.moe).model
    elements = sum(parameter.numel() for parameter in shapes.parameters())
    known = {each.scheme: each for each in advice.candidates}
    found = {}
    for label in dict.fromkeys((*_DRAWN, advice.scheme)):
        if label in known and "+" not in label:
            size, kv = known[label].weight_bytes, kv_report(shapes, Scheme.parse(label))
            if kv.groups and not kv.unknown:
                # of a window's tokens the last one comes with the query, and the cache keeps the others
                layers = tuple(
                    (group.bytes_per_token_after, None if group.window is None else group.window - 1)
                    for group in kv.groups
                )
                found[label] = Size(
                    label, name, "", str(shapes.dtype), elements, 8 * size / elements, size, layers, 1.0
                )
    return found


def command_of(form: Form) -> str:
    """The same question on the command line."""
    words = [form.model.strip()] if form.model.strip() else ["--params", f"{form.params:g}", *["--moe"] * form.moe]
    abilities = ",".join(ABILITIES.get(each, each) for each in form.abilities) or "all"
    words += ["--abilities", abilities, "--context", str(form.context), "--batch", str(form.batch)]
    if form.memory.strip():
        words += ["--memory", form.memory.strip()]
    if form.device not in ("", ANY_DEVICE):
        words += ["--device", f"'{form.device}'" if " " in form.device else form.device]
    return " ".join(["qllm-hf recommend", *words, "--tolerance", str(form.tolerance)])


def answer_html(form: Form, advice: Advice) -> str:
    """The choice, why, and what would change it."""
    chosen = advice.choice.chosen
    if chosen is None:
        headline = '<p class="qllm-big">Nothing fits</p>'
    else:
        loss = chosen.loss.percent
        lost = "unknown" if loss is None else f"{'at most ' * (chosen.loss.kind == 'rule')}{loss + 0:.1f} %"
        more = "" if advice.choice.is_within else ", more than the tolerance"
        headline = (
            f'<p class="qllm-big">{text(chosen.scheme)}</p><p class="qllm-hint">{text(size_text(chosen.total_bytes))} '
            f"of weights and cache; expected loss {lost}{more}</p>"
        )
    changed = [
        f"{change.if_}: {change.scheme} ({size_text(change.total_bytes or 0)})"
        if change.scheme
        else f"{change.if_}: nothing"
        for change in advice.changes
    ]
    parts = [
        f'<div class="qllm-card" role="status">{headline}{_list(advice.why)}</div>',
        _card("What would change it", changed or ["Nothing that was tried."]),
        _card("Where advice and data disagree", [each.text for each in advice.disagreements]),
        f'<div class="qllm-card"><h3>The same on the command line</h3><code>{text(command_of(form))}</code></div>',
    ]
    return f'<div class="qllm-stack">{"".join(parts)}</div>'


def evidence_html(host: Host, form: Form, advice: Advice) -> str:
    """The memory curve, the candidates, and the sources."""
    sizes = sizes_for(host, form, advice)
    parts = [picture(size_curves(sizes), broad=True)] if sizes else []
    parts.append(f'<div class="qllm-card"><h3>Schemes that were looked at</h3>{_candidates(advice)}</div>')
    parts.append(_sources(advice))
    if advice.notes:
        parts.append(_card("Assumed", advice.notes))
    return f'<div class="qllm-stack">{"".join(parts)}</div>'


def _candidates(advice: Advice) -> str:
    situation = advice.situation
    rows = [["scheme", "weights", "cache", "total", "fits", "loss %", "known from", ""]]
    rows += [_row(advice, each) for each in sorted(advice.candidates, key=lambda each: -each.total_bytes)]
    page = table(rows, caption=f"At {situation.batch} x {situation.context:,} tokens, the largest first")
    # the only line whose first cell is the chosen scheme
    return page.replace(
        f'<tr><th scope="row">{text(advice.scheme)}</th>',
        f'<tr class="qllm-chosen"><th scope="row">{text(advice.scheme)}</th>',
    )


def _row(advice: Advice, each: Candidate) -> list[str]:
    loss = "?" if each.loss.percent is None else f"{round(each.loss.percent, 1) + 0:.1f}"
    remark = (
        "chosen" if each.scheme == advice.scheme else f"advised against (as {each.avoided})" if each.avoided else ""
    )
    sizes = [bytes_text(size) for size in (each.weight_bytes, each.kv_bytes, each.total_bytes)]
    known = _KNOWN_FROM.get(each.loss.kind, each.loss.kind)
    return [each.scheme, *sizes, "yes" if each.fits else "no", loss, known, remark]


def _sources(advice: Advice) -> str:
    rows = [["rule", "of", "W", "WA", "KV", "joint", "avoid", "findings"]]
    for rule in advice.rules:
        bits = [getattr(rule, kind) or "-" for kind in ("w", "wa", "kv", "joint")]
        topics = ", ".join(TOPICS[topic] for topic in rule.topics)
        rows.append([rule.id, topics, *bits, " ".join(rule.avoid), " ".join(rule.findings)])
    seen = {loss.what for each in advice.candidates for loss in each.losses if loss.kind == "published"}
    data = folded("Published numbers that were used", _list(sorted(seen))) if seen else ""
    page = table(rows, caption="The fewest bits that the study advises (arXiv 2402.18158)") if advice.rules else ""
    return f'<div class="qllm-card"><h3>Sources</h3>{page}{data}</div>'


def _card(title: str, lines: Sequence[str]) -> str:
    return f'<div class="qllm-card"><h3>{text(title)}</h3>{_list(lines)}</div>' if lines else ""


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"
