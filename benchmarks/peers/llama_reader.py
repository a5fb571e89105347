"""What llama.cpp makes of a GGUF file: logits, greedy tokens, and how it cuts text.

    python benchmarks/peers/llama_reader.py FILE.gguf ASKED.json OUT.npz

Runs in an environment that has llama-cpp-python, and needs nothing else. ASKED holds `ids`, rows of tokens of one
length, `steps`, how many tokens to go on with after each, and `texts`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama


def main(file: str, asked: str, out: str) -> None:
    """Write the answers."""
    want = json.loads(Path(asked).read_text(encoding="utf-8"))
    model = Llama(model_path=file, logits_all=True, n_ctx=256, n_threads=1, verbose=False)
    logits, greedy = [], []
    for row in want["ids"]:
        model.reset()
        model.eval(row)
        logits.append(np.array(model.scores[: len(row)]))
        tokens = []
        for _ in range(want["steps"]):
            tokens.append(int(np.argmax(model.scores[model.n_tokens - 1])))
            model.eval(tokens[-1:])
        greedy.append(tokens)
    cut = [model.tokenize(text.encode(), add_bos=True, special=False) for text in want["texts"]]
    cut_json = np.frombuffer(json.dumps(cut).encode(), np.uint8)
    np.savez(out, logits=np.stack(logits), greedy=np.array(greedy), cut=cut_json)


if __name__ == "__main__":
    main(*sys.argv[1:])
