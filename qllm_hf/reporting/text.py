"""A report as plain text: aligned tables, no line wider than 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .values import Backend, KvReport, Report

WIDTH = 100
_ORIGIN = {
    "measured": "measured on the loaded model",
    "planned": "planned, nothing was quantized",
    "stored": "as stored, not loaded",
}


def render(report: Report) -> str:
    """The page that `print(report)` shows."""
    title = f"{report.architecture}, scheme {report.scheme}, {report.dtype} ({_ORIGIN[report.origin]})"
    parts = [title, _summary(report), _quantized(report), _kept(report), _kv(report.kv), _backends(report.backends)]
    if report.notes:
        parts.append("Notes\n" + "\n".join(_wrapped(note) for note in report.notes))
    return "\n\n".join(part for part in parts if part)


def bytes_text(count: float) -> str:
    """A size with its unit, in powers of 1000.

    >>> bytes_text(999), bytes_text(13_476_839_424)
    ('999 B', '13.48 GB')
    """
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:g} B"


def table(rows: Sequence[Sequence[str]], align: str, indent: int = 2) -> str:
    """Rows of cells as aligned lines; `align` has one letter per column, l or r.

    >>> print(table([["a", "1"], ["bc", "23"]], "lr", indent=0))
    a    1
    bc  23
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(align))]
    lines = (
        "  ".join(
            f"{cell:{'>' if side == 'r' else '<'}{size}}" for cell, size, side in zip(row, widths, align, strict=True)
        )
        for row in rows
    )
    return "\n".join((" " * indent + line).rstrip() for line in lines)


def _summary(report: Report) -> str:
    rows = [["", "before", "after", "ratio"]]
    rows.append(["all parameters", *_change(report.parameter_bytes_before, report.parameter_bytes_after)])
    rows.append(["linear weights", *_change(report.linear_bytes_before, report.linear_bytes_after)])
    if report.kv.groups:
        rows.append(["KV cache per token", *_change(report.kv.bytes_per_token_before, report.kv.bytes_per_token_after)])
    coverage = (
        f"quantized: {report.linear_coverage:.1%} of the linear weights (output head not counted), "
        f"{report.parameter_coverage:.1%} of all {report.elements:,} parameters"
    )
    lines = [table(rows, "lrrr", indent=0), _wrapped(coverage, "")]
    if report.bits_per_weight is not None and report.bits_per_weight_expected is not None:
        bits = (
            f"bits per quantized weight, scales and zero points included: {report.bits_per_weight:.3f} "
            f"({report.bits_per_weight_expected:.3f} by format)"
        )
        lines.append(_wrapped(bits, ""))
    return "\n".join(lines)


def _change(before: int, after: int) -> list[str]:
    return [bytes_text(before), bytes_text(after), f"{before / after:.2f}x" if after else "-"]


def _quantized(report: Report) -> str:
    if not report.quantized:
        return "Quantized weights: none"
    rows = [["kind", "bits", "group", "activations", "tensors", "elements", "before", "after", "bits/weight"]]
    for group in report.quantized:
        size = {-1: "row", 0: "matrix"}.get(group.group_size, str(group.group_size))
        rows.append(
            [
                group.kind,
                f"{group.bits}" + (" sym" if group.symmetric else ""),
                size,
                "float" if group.activation_bits == 16 else f"{group.activation_bits} bits",
                f"{group.weights:,}",
                f"{group.elements:,}",
                bytes_text(group.bytes_before),
                bytes_text(group.bytes_after),
                f"{group.bits_per_weight:.3f}",
            ]
        )
    return "Quantized weights\n" + table(rows, "lrrrrrrrr")


def _kept(report: Report) -> str:
    """One heading per reason, the largest first."""
    rows = [["what", "tensors", "elements", "bytes", "share"]]
    for group in report.kept:
        share = f"{group.elements / report.elements:.1%}"
        rows.append(
            [_short(group.pattern), f"{group.tensors:,}", f"{group.elements:,}", bytes_text(group.bytes), share]
        )
    heading, *lines = table(rows, "lrrrr", indent=4).split("\n")
    by_reason: dict[str, list[str]] = {}
    for group, line in zip(report.kept, lines, strict=True):
        by_reason.setdefault(group.reason, []).append(line)
    shown = "\n".join("\n".join([_wrapped(reason), *lines]) for reason, lines in by_reason.items())
    return f"In floating point, and why\n{heading}\n{shown}"


def _kv(kv: KvReport) -> str:
    if kv.unknown:
        return f"KV cache\n{_wrapped('bytes per token unknown: ' + kv.unknown)}"
    if not kv.groups:
        return "KV cache: none in this architecture"
    bits = "floating point" if kv.bits == 16 else f"{kv.bits} bits" + (" (keys only)" if kv.keys_only else "")
    rows = [["layers", "heads", "key dim", "value dim", "keeps", "stored", "before", "after"]]
    for group in kv.groups:
        rows.append(
            [
                str(group.layers),
                str(group.heads),
                str(group.key_dim),
                str(group.value_dim),
                "all tokens" if group.window is None else f"last {group.window:,} tokens",
                group.storage,
                bytes_text(group.bytes_per_token_before),
                bytes_text(group.bytes_per_token_after),
            ]
        )
    without = f"\n  {kv.layers_without} more layers cache no keys and values" if kv.layers_without else ""
    return f"KV cache: {bits}; bytes of one token in all layers of a row\n" + table(rows, "rrrrllrr") + without


def _backends(backends: Sequence[Backend]) -> str:
    if not backends:
        return ""
    lines = ["Linear layers run on"]
    for each in backends:
        what = f"{each.device} {each.dtype}, weights {each.weight}, activations {each.activation}"
        lines.append(_wrapped(f"{what}: {each.implementation} ({each.summary})"))
        lines += [_wrapped(f"not {name}: {reason}", "    ") for name, reason in each.refused]
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _short(pattern: str, limit: int = 48) -> str:
    """The end of a long pattern: that is where layers differ."""
    return pattern if len(pattern) <= limit else "..." + pattern[3 - limit :]
