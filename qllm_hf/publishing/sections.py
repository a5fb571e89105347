"""The sections of a card as Markdown: what it is, how to use it, what it takes and can do, its limits, its making."""

from __future__ import annotations

import json
import re
import shlex
from typing import Final

from ..builtin import BUILTIN
from ..method import RTN
from ..reporting.text import bytes_text
from ..scheme import FLOAT_BITS
from ..shown import printable
from .base import Base
from .measured import Measured
from .quantized import Quantized
from .tables import PARTIAL_MARK, ability_table, file_table, markdown, plain, scheme_table, size_table, task_table

_NAME_LINE: Final = re.compile(r'^name = ".*"(?=  # )', re.M)
_PROMPT: Final = "Once upon a time"
_VERSIONS: Final = ("qllm_hf", "transformers", "torch", "python")


def sections(model: Quantized, base: Base, measured: Measured | None, name: str) -> dict[str, str]:
    """{placeholder of card.md: its text}; an empty text leaves the section out."""
    return {
        "title": f"{plain(base.name.rpartition('/')[2])}, quantized to {model.scheme}",
        "summary": _summary(model, base),
        "usage": _usage(model, name),
        "sizes": _sizes(model),
        "scores": "" if measured is None else _scores(measured),
        "schemes": "" if measured is None else _schemes(measured, model),
        "limits": _limits(model, measured),
        "made": _made(model, base),
    }


def renamed(text: str, name: str) -> str:
    """A card's text, with another name of the model in the example."""
    return _NAME_LINE.sub(lambda _: f'name = "{name}"', text, count=1)


def _summary(model: Quantized, base: Base) -> str:
    report, scheme = model.report, model.config.scheme
    kinds = (("weights", scheme.w), ("activations", scheme.a), ("keys and values", scheme.kv))
    what = f"[{base.id}](https://huggingface.co/{base.id})" if base.id else f"the model {plain(base.name)}"
    if base.name in BUILTIN:
        what += ", which comes with qllm_hf,"
    bits = ", ".join(f"{kind} at {count} bits" for kind, count in kinds if count < FLOAT_BITS)
    text = f"This is {what} with {bits} (scheme `{model.scheme}`), made with qllm_hf. "
    if report.bits_per_weight is None:
        return text + "The weights are those of the base model."
    how = "by rounding to nearest" if model.config.method == RTN else f"by the method {model.config.method}"
    if model.config.imported:
        said = {key: plain(str(value)) for key, value in model.config.imported.items()}
        how = "by {made_by} and taken over from its {quant_method} checkpoint".format_map(said)
    return (
        f"{text}Codes were chosen {how}. The weights take {bytes_text(report.parameter_bytes_after)} instead of "
        f"{bytes_text(report.parameter_bytes_before)}: {report.bits_per_weight:.2f} bits for a quantized one, with its "
        f"scales and zero points. {report.linear_coverage:.1%} of the linear weights are quantized, and "
        f"{report.parameter_coverage:.1%} of all {report.elements:,} parameters."
    )


def _usage(model: Quantized, name: str) -> str:
    lines = [
        "import qllm_hf  # pip install qllm-hf; it teaches transformers this format",
        "from transformers import AutoModelForCausalLM" + (", AutoTokenizer" if model.has_tokenizer else ""),
        "",
        f"name = {json.dumps(name, ensure_ascii=False)}  # on the Hub, or a folder",
        "model = AutoModelForCausalLM.from_pretrained(name)",
    ]
    if model.has_tokenizer:
        lines += [
            "tokenizer = AutoTokenizer.from_pretrained(name)",
            f'prompt = tokenizer("{_PROMPT}", return_tensors="pt")',
            "tokens = model.generate(**prompt, max_new_tokens=40)",
            "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
        ]
    lines.append("print(qllm_hf.report(model))")
    code = "\n".join(lines)
    return f'```python\n{code}\n```\n\nOr: `qllm-hf generate {shlex.quote(name)} "{_PROMPT}"`'


def _sizes(model: Quantized) -> str:
    report = model.report
    rows = [["kind", "bits", "group", "tensors", "weights", "bytes", "bits per weight"]]
    for group in report.quantized:
        size = {-1: "row", 0: "matrix"}.get(group.group_size, str(group.group_size))
        rows.append(
            [
                group.kind,
                f"{group.bits}" + (", symmetric" if group.symmetric else ""),
                size,
                f"{group.weights:,}",
                f"{group.elements:,}",
                bytes_text(group.bytes_after),
                f"{group.bits_per_weight:.3f}",
            ]
        )
    parts = [size_table(report)]
    if report.quantized:
        parts.append(markdown(rows, "lrrrrrr"))
    return "\n\n".join(parts)


def _scores(measured: Measured) -> str:
    parts = [table for table in (ability_table(measured), task_table(measured)) if table]
    legend = ["± is the standard error."]
    if measured.has_baseline:
        legend.append(
            "A difference within two standard errors is called noise. Recovery is the part of the score above guessing "
            "that is left; it is not given where the float model does not score above guessing, nor for losses."
        )
    else:
        legend.append("The float model was not measured, so nothing is said of what quantization cost.")
    if any(record.is_partial for record in measured.records):
        limits = "/".join(str(limit) for limit in dict.fromkeys(r.limit for r in measured.records if r.limit))
        legend.append(
            f"{PARTIAL_MARK} **Partial**: only the first {limits} items were asked. This is no score of the benchmark."
        )
    return "\n\n".join([*parts, " ".join(legend)])


def _schemes(measured: Measured, model: Quantized) -> str:
    table = scheme_table(measured, model.report)
    return table and f'{table}\n\nThe recovery of each ability; "-" where other tasks were measured, or none.'


def _limits(model: Quantized, measured: Measured | None) -> str:
    report, scheme = model.report, model.config.scheme
    points = []
    by_reason: dict[str, list[str]] = {}
    for group in report.kept:
        by_reason.setdefault(group.reason, []).append(f"{_code(group.pattern)} ({bytes_text(group.bytes)})")
    for reason, patterns in by_reason.items():
        points.append(f"In floating point ({report.dtype}): {', '.join(patterns)}. Why: {reason}.")
    if scheme.kv < FLOAT_BITS:
        points.append(
            f"Keys and values are quantized to {scheme.kv} bits by qllm_hf while the model runs, in prefill, decoding "
            "and a forward without a cache alike. Nothing of that is stored in the files, and other programs do not "
            "do it."
        )
    if report.kv.unknown:
        points.append(f"The bytes of the KV cache are not known: {report.kv.unknown}.")
    if scheme.a < FLOAT_BITS:
        points.append(f"Activations are quantized to {scheme.a} bits by qllm_hf while the model runs.")
    if scheme.w < FLOAT_BITS:
        points.append("The weights are packed in a format of qllm_hf; other programs refuse them.")
    points += [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in report.notes]
    points.append("Sizes are counted, not estimated. Nothing is said of speed, which depends on the machine.")
    if measured is None:
        points.append("Nothing was measured of what quantization cost: `qllm-hf evaluate` does that.")
    return "\n".join(f"- {point}" for point in points)


def _code(pattern: str) -> str:
    """A name of tensors as code; what is no name ("of LlamaRMSNorm") as text."""
    return plain(pattern) if " " in pattern else f"`{printable(pattern).replace(chr(96), chr(39))}`"


def _made(model: Quantized, base: Base) -> str:
    recipe = model.recipe
    parts = []
    if recipe is None:
        parts.append("The command was not written down.")
    else:
        parts.append(f"```bash\n{shlex.join(recipe.command)}\n```")
    revision = base.revision or "not known"
    facts = [["base model", f"{plain(base.name)}, revision `{revision}`"]]
    if recipe is not None:
        facts += [[name, plain(recipe.versions[name])] for name in _VERSIONS if name in recipe.versions]
    if imported := model.config.imported:
        said = {key: plain(str(value)) for key, value in imported.items()}
        facts.append(["imported from", "{quant_method}, made by {made_by}".format_map(said)])
    elif seen := (model.config.calibration if isinstance(model.config.calibration, dict) else None):
        text = f"{plain(str(seen.get('source')))}, {seen.get('samples')} x {seen.get('seqlen')} tokens"
        facts.append(["calibration", f"{text}, digest {_code(str(seen.get('digest')))}"])
    parts += [markdown([["", ""], *facts], "ll"), file_table(model)]
    return "\n\n".join(parts)
