"""Put the committed results into the README: the tables between `<!-- name -->` and `<!-- /name -->`.

python benchmarks/tables.py            rewrite README.md
python benchmarks/tables.py --check    fail if it would change
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
README = Path(__file__).resolve().parent.parent / "README.md"


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


TABLES = {
    "exactness": exactness,
    "schemes": schemes,
    "decoding": decoding,
    "caches": caches,
    "loading": loading,
}


def render(text: str) -> str:
    """The README with every table made anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no place for {name}")
        content = make()
        text = pattern.sub(lambda match, content=content: match[1] + content + match[2], text)
    return text


def main() -> None:
    before = README.read_text(encoding="utf-8")
    after = render(before)
    if "--check" in sys.argv:
        sys.exit("README.md is not what benchmarks/tables.py makes" if after != before else 0)
    README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
