"""Writes the cards of model_cards/ again: quantizes a model to each scheme and puts the scores of a sweep on its card.

    python scripts/model_cards.py RESULTS --model reference W4KV8 W3KV4

Nothing but the cards is kept. The scores are those in RESULTS, a folder of `qllm-hf sweep`; a scheme that was not
measured there is an error.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CARDS = Path(__file__).resolve().parents[1] / "model_cards"


def write_card(model: str, scheme: str, results: Path, out: Path) -> Path:
    """The card of `model` under `scheme`."""
    name = f"{Path(model).name}-{scheme.lower()}"
    card = out / f"{name}.md"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        qllm_hf("quantize", model, "--scheme", scheme, "-o", str(folder), "--quiet")
        fresh = Path(scratch) / card.name
        qllm_hf("card", str(folder), "--results", str(results), "-o", str(fresh))
        card.write_bytes(fresh.read_bytes())
    return card


def qllm_hf(*words: str) -> None:
    """Run one command of the program; where it fails, it has said why."""
    if code := subprocess.run([sys.executable, "-m", "qllm_hf", *words], stdout=subprocess.DEVNULL).returncode:
        sys.exit(code)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("schemes", nargs="+")
    parser.add_argument("--model", default="reference")
    parser.add_argument("-o", "--out", type=Path, default=CARDS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for scheme in given.schemes:
        print(write_card(given.model, scheme, given.results, given.out))


if __name__ == "__main__":
    main()
