"""Put the committed results into README.md, docs and the model card, between `<!-- name -->` and `<!-- /name -->`.

python benchmarks/tables.py            rewrite them
python benchmarks/tables.py --check    fail if one would change
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qllm_hf.evaluation.record import Record, ability_scores

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results"
MODEL = REPO / "qllm_hf" / "reference_model"


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(header: list[str], lines: list[list[str]]) -> str:
    body = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


def schemes() -> str:
    """Nats per token by scheme, groups of 128 and 32 side by side."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows("stories_schemes"):
        found.setdefault(row["scheme"], {})[row["w_group_size"] or "128"] = row
    lines = []
    for scheme, by_group in found.items():
        cells = [scheme]
        for text in ("tinystories", "wikitext2"):
            cells += [f"{float(by_group[g][text]):.3f}" if g in by_group else "" for g in ("128", "32")]
        lines.append(cells)
    return table(["", "TinyStories, g128", "g32", "WikiText-2, g128", "g32"], lines)


def decoding() -> str:
    lines = [
        [row["scheme"]]
        + [f"{float(row[key]):.1e}" for key in ("float64_max", "float32_max", "float32_median")]
        + [f"{float(row['float32_share_above_1e-3']):.1%}"]
        for row in rows("stories_decoding")
    ]
    return table(["", "float64, max", "float32, max", "float32, median", "float32, tokens above 1e-3"], lines)


def caches() -> str:
    found = rows("stories_caches")
    lines = [["FP16", "", f"{float(found[0]['fp16']):.3f}", "", ""]]
    lines += [
        [row["cache"], row["bits"]]
        + [f"{float(row[key]):.3f}" for key in ("one_forward", "one_by_one")]
        + [f"{float(row['max_logit_difference']):.1e}"]
        for row in found
    ]
    return table(["cache", "bits", "one forward", "one token at a time", "max logit difference"], lines)


def loading() -> str:
    lines = [
        [
            row["scheme"],
            *(f"{float(row[key]):.0f} MB" for key in ("packed_model_mb", "peak_over_baseline_mb", "allowed_peak_mb")),
            f"{float(row['seconds']):.0f} s",
            f"{float(row['bits_per_weight_disk']):.4f}",
            f"{float(row['bits_per_weight_theory']):.4f}",
        ]
        for row in rows("loading")
    ]
    header = ["", "packed model", "peak over baseline", "bound", "time", "bits/weight on disk", "in theory"]
    return table(header, lines)


def exactness() -> str:
    found = rows("exactness")
    groups = sum(int(row["groups"]) for row in found)
    mismatches = sum(int(row["mismatches"]) for row in found)
    return f"{mismatches} mismatches in {groups:,} groups of random, adversarial and real tensors."


def reference_records() -> dict[str, list[Record]]:
    """{scheme: its records} of the reference model."""
    found: dict[str, list[Record]] = {}
    for row in rows("reference_model"):
        values: dict[str, Any] = {name: row[name] for name in ("scheme", "ability", "task", "metric")}
        numbers = {name: float(row[name]) for name in ("value", "stderr")}
        chance = float(row["chance"]) if row["chance"] else None
        record = Record(**values, **numbers, items=int(row["items"]), chance=chance)
        found.setdefault(record.scheme, []).append(record)
    return found


def with_error(value: float, stderr: float) -> str:
    """0.912 +- 0.014 as 0.912(14)."""
    return f"{value:.3f}({round(stderr * 1000)})"


def perplexity(record: Record) -> str:
    """Of a word, from nats per word; its error is that of the nats times the perplexity."""
    value = math.exp(record.value)
    if value >= 100:
        return f"{value:.0f}({round(value * record.stderr)})"
    return f"{value:.2f}({round(value * record.stderr * 100)})"


def abilities() -> str:
    """Reference model: mean accuracy of each ability by scheme."""
    lines = []
    for scheme, records in reference_records().items():
        (loss,) = (record for record in records if not record.is_accuracy)
        scores = ability_scores(records)
        lines.append([scheme, *(with_error(s.value, s.stderr) for s in scores.values()), perplexity(loss)])
    lines.append(["chance", *(f"{score.chance:.3f}" for score in scores.values()), ""])
    return table(["", *scores, "perplexity"], lines)


def tasks() -> str:
    """Reference model: every task by scheme; tasks are rows, since there are more of them."""
    found = reference_records()
    lines = []
    for index, first in enumerate(next(iter(found.values()))):
        cells = [first.task.removeprefix("mini_"), "" if first.chance is None else f"{first.chance:.2f}"]
        for records in found.values():
            record = records[index]
            cells.append(with_error(record.value, record.stderr) if record.is_accuracy else perplexity(record))
        lines.append(cells)
    return table(["task", "chance", *found], lines)


def training() -> str:
    """Reference model: how long it was trained, and the losses at the end."""
    with (MODEL / "training_log.csv").open(encoding="utf-8") as file:
        log = list(csv.DictReader(file))
    last = [row for row in log if row["step"] == log[-1]["step"]]
    lines = [[row["task"], row["loss"], row["right"] and f"{float(row['right']):.2f}"] for row in last]
    said = (
        f"{int(last[0]['step']):,} steps, {int(last[0]['tokens']) / 1e6:.1f} million tokens, "
        f"{float(last[0]['minutes']):.0f} minutes. The last step:"
    )
    return f"{said}\n\n" + table(["", "loss", "right"], lines)


def kv_scores() -> str:
    """Tasks as columns, caches and bits as rows; a value equal to FP16's is said to be so."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows("kv_scores"):
        found.setdefault((row["cache"], row["scheme"]), {})[row["task"]] = row["value"]
    exact = found["FP16", "FP16"]
    header = ["cache", "bits", *(name.removeprefix("qllm_") for name in exact)]
    lines = []
    for (cache, scheme), values in found.items():
        shown = [values[task] if values[task] == "fails" else f"{float(values[task]):.4g}" for task in exact]
        same = [cache != "FP16" and values[task] == exact[task] for task in exact]
        cells = [f"{cell} =" if equal else cell for cell, equal in zip(shown, same, strict=True)]
        lines.append([cache if cache != "FP16" else "none", scheme, *cells])
    return table(header, lines)


def evaluation() -> str:
    """Differences to lm_eval, and speeds."""
    lines = [
        [
            row["model"],
            row["scheme"],
            row["task"],
            row["requests"],
            row["float64_largest_difference"],
            row["float32_largest_difference"],
            row["float32_lm_eval_batch_8_to_32"],
            row["ours_items_per_second"],
            row["lm_eval_items_per_second"],
            row["ratio"],
        ]
        for row in rows("evaluation")
    ]
    header = ["model", "scheme", "task", "requests", "float64, max", "float32, max", "lm_eval 8 to 32, max"]
    return table([*header, "items/s", "lm_eval items/s", "ratio"], lines)


def scores() -> str:
    """Tasks as rows, models and schemes as columns."""
    found: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    for row in rows("scores"):
        found.setdefault(row["task"], {})[row["model"], row["scheme"]] = row
    columns = list(next(iter(found.values())))
    lines = []
    for task, by_model in found.items():
        first = next(iter(by_model.values()))
        cells = [first["ability"], f"`{task}`", first["items"], first["chance"] and f"{float(first['chance']):.3f}"]
        for column in columns:
            row = by_model[column]
            value, error = float(row["value"]), float(row["stderr"])
            cells.append(with_error(value, error) if value <= 1 else f"{value:.2g}")
        lines.append(cells)
    names = [f"{model} {scheme}" for model, scheme in columns]
    return table(["ability", "task", "items", "chance", *names], lines)


def calibration() -> str:
    """Memory and time of calibrating a model of 1.1B parameters."""
    lines = []
    for row in rows("calibration"):
        seconds = f"{float(row['seconds']):.0f}"
        if float(row["seconds_before_kill"]):
            seconds = f"{float(row['seconds_before_kill']):.0f} + {seconds}"
        lines.append(
            [
                row["layers"],
                row["run"] + (f" after {row['blocks_before_kill']} blocks" if row["run"] == "resumed" else ""),
                *(f"{float(row[key]):.0f}" for key in ("peak_calibrating_mb", "peak_mb", "limit_mb")),
                f"{float(row['packed_model_mb']):.0f} + {float(row['float32_block_mb']):.0f}",
                seconds,
            ]
        )
    header = ["blocks", "run", "peak while calibrating, MB", "peak, MB", "limit", "packed model + block", "s"]
    return table(header, lines)


def invariance() -> str:
    """Pairs of each family, and how far moving scales moves its logits."""
    columns = ("family", "norm", "linear", "experts", "input", "left_alone", "max_dlogits", "max_logits")
    lines = [["" if row[column] == "0" else row[column] for column in columns] for row in rows("invariance")]
    header = ["model", "norm", "linear", "experts", "input", "left alone", "max change of a logit", "largest logit"]
    return table(header, lines)


def methods() -> str:
    """Loss over the float model by scheme and group, a column for each method."""
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    names: dict[str, None] = {}
    for row in rows("methods"):
        if not row["method"]:
            continue
        names[row["method"]] = None
        gain, error = float(row["over_rtn"]), float(row["over_rtn_stderr"])
        text = with_error(float(row["over_float"]), float(row["over_float_stderr"]))
        beyond = error > 0 and abs(gain) > 3 * error
        cell = f"**{text}**" if beyond else text
        found.setdefault((row["model"], row["scheme"], row["group"]), {})[row["method"]] = cell
    lines = [[*key, *(cells.get(name, "") for name in names)] for key, cells in found.items()]
    return table(["model", "scheme", "group", *names], lines)


def peers() -> str:
    """Loss over the float model of each library, and what a library says where it cannot."""
    columns = dict.fromkeys((row["model"], row["scheme"], row["group_size"]) for row in rows("methods_peers"))
    found: dict[tuple[str, str], dict[tuple[str, str, str], str]] = {}
    for row in rows("methods_peers"):
        value = "cannot"
        if row["difference"]:
            value = with_error(float(row["difference"]), float(row["stderr"]))
        key = (row["model"], row["scheme"], row["group_size"])
        found.setdefault((f"{row['library']} {row['version']}".strip(), row["method"]), {})[key] = value
    lines = [[*name, *(cells.get(column, "") for column in columns)] for name, cells in found.items()]
    return table(["library", "method", *(f"{scheme} g{size}" for _, scheme, size in columns)], lines)


def cost() -> str:
    """How near predicted bytes come to measured ones."""
    names = {
        "weights": "weights of a loaded model",
        "file": "tensors of its safetensors file",
        "kv": "KV cache after generate",
        "states": "states of state-space layers",
    }
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows("cost"):
        found.setdefault(row["quantity"], []).append(row)
    lines = []
    for quantity, of in found.items():
        exact = sum(row["predicted"] == row["measured"] for row in of)
        worst = max(abs(float(row["ratio"]) - 1) for row in of)
        models = len({row["model"] for row in of})
        lines.append([names.get(quantity, quantity), str(models), str(len(of)), str(exact), f"{worst:.4%}"])
    return table(["bytes of", "models", "comparisons", "exact", "largest difference"], lines)


def speed() -> str:
    """Seconds of the float model, and the speed of packed ones in parts of it."""
    lines = []
    for row in rows("speed"):
        cells = [row["model"], row["batch"], row["scheme"], f"{float(row['weight_bytes']) / 1e6:.0f} MB"]
        if row["status"] != "ok":
            lines.append([*cells, row["status"], "", "", "", ""])
            continue
        times = [f"{float(row[f'{stage}_s']):.3f}" for stage in ("prefill", "decode")]
        parts = [row[f"{stage}_ratio"] for stage in ("prefill", "decode", "end_to_end")]
        lines.append([*cells, *times, *(f"{float(part):.2f}x" if part else "" for part in parts)])
    header = ["model", "batch", "scheme", "weights", "prefill, s", "a token, s", "prefill", "decode", "end to end"]
    return table(header, lines)


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
    return table(["", *header], lines)


def rounding() -> str:
    """How far kernels and plain torch are from float64, in nats of a token's log-likelihood."""
    pairs = ("kernels_float64", "torch_float64", "kernels_torch")
    lines = [
        [
            row["dtype"],
            row["scheme"],
            *(f"{float(row[f'{pair}_{kind}']):.1e}" for pair in pairs for kind in ("mean", "largest")),
        ]
        for row in rows("kernel_rounding")
    ]
    names = ("kernels - float64", "torch - float64", "kernels - torch")
    return table(["", "", *(cell for name in names for cell in (name, "largest"))], lines)


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


def rotation() -> str:
    """Divergence with and without rotated keys."""
    found: dict[str, list[str]] = {}
    for row in rows("rotation"):
        found.setdefault(row["scheme"], []).extend(f"{float(row[column]):.2g}" for column in ("plain", "rotated"))
    factors = list(dict.fromkeys(row["times_larger"] for row in rows("rotation")))
    names = ["keys as they are" if factor == "1" else f"two channels {factor} times" for factor in factors]
    return table(["", *(cell for name in names for cell in (name, "rotated"))], [[k, *v] for k, v in found.items()])


FILES: dict[Path, dict[str, Callable[[], str]]] = {
    REPO / "README.md": {
        "abilities": abilities,
        "exactness": exactness,
        "schemes": schemes,
        "decoding": decoding,
        "caches": caches,
        "loading": loading,
    },
    REPO / "docs" / "choosing.md": {"cost": cost, "speed": speed, "rotation": rotation},
    REPO / "docs" / "kernels.md": {
        "linear": linear,
        "attention": attention,
        "decode": decode,
        "overhead": overhead,
        "packing": packing,
        "same_scores": same_scores,
        "rounding": rounding,
        "gpu_gate": gpu_gate,
    },
    REPO / "docs" / "evaluation.md": {"kv_scores": kv_scores, "evaluation": evaluation, "scores": scores},
    REPO / "docs" / "methods.md": {
        "calibration": calibration,
        "invariance": invariance,
        "methods": methods,
        "peers": peers,
    },
    MODEL / "README.md": {"training": training, "tasks": tasks},
}


def render(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """The text with every table made anew."""
    for name, make in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?\n?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"there is no place for {name}")
        content = make()
        text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def main() -> None:
    for path, tables in FILES.items():
        before = path.read_text(encoding="utf-8")
        after = render(before, tables)
        if "--check" in sys.argv and after != before:
            sys.exit(f"{path.relative_to(REPO)} is not what benchmarks/tables.py makes")
        path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
