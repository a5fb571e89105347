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

import export_tables
import kernel_tables
import scaling_tables
from result_tables import rows, table

from qllm_hf.evaluation.record import Record, ability_scores

REPO = Path(__file__).resolve().parent.parent
MODEL = REPO / "qllm_hf" / "reference_model"


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
        "linear": kernel_tables.linear,
        "attention": kernel_tables.attention,
        "decode": kernel_tables.decode,
        "overhead": kernel_tables.overhead,
        "packing": kernel_tables.packing,
        "same_scores": kernel_tables.same_scores,
        "rounding": kernel_tables.rounding,
        "gpu_gate": kernel_tables.gpu_gate,
    },
    REPO / "docs" / "evaluation.md": {"kv_scores": kv_scores, "evaluation": evaluation, "scores": scores},
    REPO / "docs" / "methods.md": {
        "calibration": calibration,
        "invariance": invariance,
        "methods": methods,
        "peers": peers,
    },
    REPO / "docs" / "exchange.md": {
        "export_readers": export_tables.readers,
        "export_measured": export_tables.measured,
        "export_memory": export_tables.memory,
        "gguf": export_tables.gguf,
        "imported": export_tables.imported,
    },
    REPO / "docs" / "scaling.md": {
        "serving": scaling_tables.serving,
        "parallel": scaling_tables.parallel,
        "offload": scaling_tables.offload,
        "adapters": scaling_tables.adapters,
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
