"""The tables of docs/kernels.md."""

from __future__ import annotations

import math
import re

from result_tables import rows, table


def linear() -> str:
    """Ours and the best other library with as many bits of weights, for each number of tokens."""
    # a product without the quantization that it needs is no linear layer; A4 takes as long as A8
    bare = ("integers only",)
    found = [r for r in rows("linear") if r["ratio"] and r["activation_bits"] != "4" and not r["method"].endswith(bare)]
    large = [(n, k) for n, k in dict.fromkeys((row["n"], row["k"]) for row in found) if int(k) >= 4096]
    lines = []
    for tokens in dict.fromkeys(row["tokens"] for row in found):
        here = [row for row in found if row["tokens"] == tokens and (row["n"], row["k"]) in large]
        shapes = [shape for shape in large if any((row["n"], row["k"]) == shape for row in here)]
        for name in (name for name in dict.fromkeys(row["method"] for row in here) if name.startswith("qllm_hf")):
            ours = {(row["n"], row["k"]): row for row in here if row["method"] == name}
            if len(ours) < len(shapes):
                continue
            others = [
                max(
                    (float(row["ratio"]), row["method"])
                    for row in here
                    if (row["n"], row["k"]) == shape
                    and row["bits"] == ours[shape]["bits"]
                    and not row["method"].startswith(("qllm_hf", "bf16"))
                )
                if any(row["bits"] == ours[shape]["bits"] and "qllm_hf" not in row["method"] for row in here)
                else (math.nan, "none")
                for shape in shapes
            ]
            best = max(others, key=lambda each: -math.inf if math.isnan(each[0]) else each[0])
            lines.append(
                [
                    tokens,
                    name.removeprefix("qllm_hf cpu "),
                    " / ".join(f"{float(ours[shape]['ratio']):.2f}" for shape in shapes),
                    " / ".join(f"{float(ours[shape]['gb_per_s']):.1f}" for shape in shapes),
                    "" if math.isnan(best[0]) else f"{best[0]:.2f} ({best[1]})",
                ]
            )
    shown = ", ".join(f"{n}x{k}" for n, k in large)
    return table(["tokens", "", f"faster than bf16, {shown}", "GB/s of weights", "best peer"], lines)


def attention() -> str:
    found = [row for row in rows("attention") if row["method"] == "kernel"]
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in found:
        cell = f"{float(row['ratio']):.2f} ({float(row['ratio_to_grouped']):.2f})"
        lines.setdefault((row["heads"], row["head_dim"], row["tokens"]), {})[row["bits"]] = cell
    bits = list(dict.fromkeys(row["bits"] for row in found))
    body = [[*key, *(cells.get(each, "") for each in bits)] for key, cells in lines.items()]
    return table(["heads/kv heads", "head dim", "tokens", *(f"KV{each}" for each in bits)], body)


def decode() -> str:
    """Milliseconds per token of the float model, and of each method how many times faster it is, by context."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows("decode"):
        found.setdefault((row["model"], row["method"]), {})[row["context"]] = row
    contexts = sorted({row["context"] for row in rows("decode")}, key=int)
    lines = []
    for (model, method), by_context in found.items():
        measured = [by_context[context] for context in contexts if context in by_context]
        if not any(row["ms_per_token"] for row in measured):
            lines.append([model, method, measured[0]["remark"], *[""] * (2 * len(contexts))])
            continue
        cells = []
        for context in contexts:
            row = by_context.get(context, {"ms_per_token": "", "remark": ""})
            if not row["ms_per_token"]:
                cells.append("")
            elif method == "bf16":
                cells.append(f"{float(row['ms_per_token']):.1f} ms")
            else:
                cells.append(f"{float(row['ratio']):.2f}")
        prefill = [row for row in measured if row["prefill_ratio"]]
        cells += [" / ".join(f"{float(row['prefill_ratio']):.2f}" for row in prefill)]
        cells += [" / ".join(f"{float(row['peak_rss_mb']):.0f}" for row in measured if row["peak_rss_mb"])]
        lines.append([model, method, *cells])
    return table(["model", "", *(f"{context} tokens" for context in contexts), "prefill", "peak MB"], lines)


def overhead() -> str:
    lines = [
        [
            row["layers"],
            row["method"],
            f"{float(row['us_per_step']) / 1e3:.2f} ms",
            f"{float(row['above_bf16_us']) / 1e3:+.2f} ms",
        ]
        for row in rows("overhead")
    ]
    return table(["layers", "", "a step", "beside bf16"], lines)


def packing() -> str:
    """Seconds for the weights of a 7B model, and how often the machine could read them at 8 bits meanwhile."""
    lines = []
    for row in rows("packing"):
        group = "channel" if row["group_size"] == "-1" else row["group_size"]
        measured = [f"{float(row['seconds']):.1f} s", row["reads_of_8_bits"]] if row["seconds"] else [row["note"], ""]
        lines.append([row["method"], row["bits"], group, *measured])
    return table(["", "bits", "group", "7B weights", "over reading 8 bits"], lines)


def same_scores() -> str:
    """Items of the miniature tasks that the kernels answer otherwise than plain torch does."""
    found: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows("kernel_scores"):
        found.setdefault(row["scheme"], {}).setdefault(row["dtype"], []).append(row)
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows("kernel_scores")))
    lines = []
    for scheme, by_dtype in found.items():
        cells = [scheme]
        for dtype in dtypes:
            of = by_dtype.get(dtype, [])
            changed, items = (sum(int(row[column]) for row in of) for column in ("changed", "items"))
            largest = max((float(row["likelihood_difference"] or 0) for row in of), default=math.nan)
            cells += [f"{changed} of {items:,}", f"{largest:.1e}"]
        lines.append(cells)
    header = [cell for dtype in dtypes for cell in (f"{dtype}: other answers", "largest difference, nats")]
    return f"{table(['', *header], lines)}\n\n{_which_way()}"


def _which_way() -> str:
    """Whether scores that differ in bfloat16 have become better or worse."""
    scores = [row for row in rows("kernel_scores") if row["dtype"] == "bfloat16" and int(row["changed"])]
    changes = [(float(row["kernels"]) - float(row["plain_torch"]), float(row["stderr"])) for row in scores]
    higher, lower = (sum(sign * change > 0 for change, _ in changes) for sign in (1, -1))
    largest = max(abs(change) / error for change, error in changes if error)
    return (
        f"Of the task scores that differ in bfloat16, {higher} are higher with the kernels and {lower} lower, "
        f"by at most {largest:.1f} standard errors."
    )


def rounding() -> str:
    """How far kernels and plain torch are from float64, in nats of a token's log-likelihood."""
    pairs = ("kernels_float64", "torch_float64", "kernels_torch")
    lines = [
        [
            row["dtype"],
            row["scheme"],
            *(f"{float(row[f'{pair}_{kind}']):.1e}" for pair in pairs for kind in ("mean", "largest")),
            f"{float(row['kernels_float64_mean']) / float(row['torch_float64_mean']):.2f}",
        ]
        for row in rows("kernel_rounding")
    ]
    names = ("kernels - float64", "torch - float64", "kernels - torch")
    return table(["", "", *(cell for name in names for cell in (name, "largest")), "times as far"], lines)


# Kernels of gpu_gate.csv that the table shows: what finds them, their row, and what names them there.
GATES = (
    (r"^(W\d) bf16 1 tokens$", "products, A16, a token", "{1}"),
    (r"^(W\d) bf16 (\d+) tokens$", "products, A16, {2} tokens", "{1}"),
    (r"^(W\d)A8 (g-?\d+)( symmetric)?, (a token|\d+ tokens|many tokens)$", "products, A8, {4}", "{1} {2}{3}"),
    (r"^experts (W\d) bf16 (\d+) tokens$", "64 experts, A16, {2} tokens", "{1}"),
    (r"^experts (W\dA8 g-?\d+) (\d+) tokens$", "64 experts, A8, {2} tokens", "{1}"),
    (r"^tokens (.*)$", "tokens to integers", "{1}"),
    (r"^(KV\d g\d+)$", "attention", "{1}"),
    (r"^decode (W\d g\d+) of 4096$", "decoding weights", "{1}"),
    (r"^decode (KV\d g\d+) of 128$", "decoding rows", "{1}"),
    (r"^(?:encode|append) (\w+ g\d+) bf16$", "encoding", "{1}"),
)


def gpu_gate() -> str:
    """Instructions per number on sm_90 and how many are allowed, a row for each kind of kernel."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows("gpu_gate"):
        matches = ((re.match(pattern, row["gate"]), *names) for pattern, *names in GATES)
        match, kind, name = next((each for each in matches if each[0]), (None, "", ""))
        if match and row["target"] == "cuda:90" and row["per_element"] and row["budget"]:
            texts = [match[0], *(group or "" for group in match.groups())]
            found.setdefault(kind.format(*texts), []).append({**row, "name": name.format(*texts)})
    lines = []
    for kind, of in found.items():
        by_budget: dict[str, list[str]] = {}
        for row in of:
            cell = f"{row['name']} {row['per_element']}"
            by_budget.setdefault(row["budget"], []).append(cell if row["within"] == "yes" else f"**{cell}**")
        cells = [f"{', '.join(names)} of {float(budget):.2f}" for budget, names in by_budget.items()]
        registers = max(int(row["registers"]) for row in of)
        cores = " ".join(sorted({row["tensor_core"] for row in of if row["tensor_core"]}))
        lines.append([kind, "; ".join(cells), str(registers), cores])
    return table(["", "instructions per number, of those allowed", "registers", "tensor cores"], lines)
