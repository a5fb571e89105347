"""What KV bits cost in scores: ours, and the quantized cache of transformers on the same items.

    python benchmarks/kv_scores.py DATA_FOLDER STORIES260K

Likelihood tasks run one forward per item. transformers' `QuantizedCache` is handed to each of those forwards, as one
would who wants its bits measured, and to each `generate`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import write_results

import qllm_hf
from qllm_hf.evaluation.engine import Subject, evaluate
from qllm_hf.loading import load_model, load_tokenizer

STORIES = {"wikitext": 10, "qllm_piqa": 200, "qllm_arc_easy": 200, "truthfulqa_mc2": 60}
MINIATURE = {"mini_stories": 200, "mini_calibration": 200, "mini_arithmetic": 200, "mini_lines_256": 200}
BITS = (8, 4, 3, 2)


def peer(model: Any, bits: int) -> Any:
    """The model with transformers' quantized cache in every forward that brings none, and in every generation.

    With hqq behind it: quanto fails with more than one item in a batch.
    """
    from transformers import QuantizedCache

    size = model.config.head_dim or model.config.hidden_size // model.config.num_attention_heads
    forward, generate = model.forward, model.generate

    def make() -> Any:
        return QuantizedCache(
            "hqq", model.config, nbits=bits, q_group_size=size, residual_length=1, axis_key=1, axis_value=1
        )

    def with_cache(*arguments: Any, **options: Any) -> Any:
        if options.get("past_key_values") is None:
            options |= {"past_key_values": make(), "use_cache": True}
        return forward(*arguments, **options)

    def writes(**options: Any) -> Any:
        return generate(**options, past_key_values=make())

    with_cache.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward, model.generate = with_cache, writes
    return model


def ways(name: str) -> Iterator[tuple[str, str, Any]]:
    """(whose cache, bits, the model that uses it)."""
    yield "FP16", "FP16", load_model(name, dtype="float32")
    for bits in BITS:
        yield "qllm_hf", f"KV{bits}", load_model(name, qllm_hf.QllmConfig(kv=bits), dtype="float32")
    for bits in BITS:
        yield "transformers hqq", f"KV{bits}", peer(load_model(name, dtype="float32"), bits)


def main(data: Path, stories: str) -> None:
    rows: list[dict[str, Any]] = []
    for name, tasks in ((stories, STORIES), ("reference", MINIATURE)):
        tokenizer = load_tokenizer(name)
        for who, scheme, model in ways(name):
            for task, limit in tasks.items():
                row = {"model": Path(name).name, "cache": who, "scheme": scheme, "task": task}
                try:
                    (record,) = evaluate(model.eval(), tokenizer, Subject(scheme), [task], limit=limit, data_dir=data)
                except RuntimeError as error:  # hqq unpacks 3 bits to another shape than it packed
                    if who == "qllm_hf":
                        raise
                    print(who, scheme, task, error)
                    rows.append({**row, "metric": "", "value": "fails", "stderr": "", "items": limit})
                    continue
                found = {"value": f"{record.value:.6g}", "stderr": f"{record.stderr:.3g}", "items": record.items}
                rows.append({**row, "metric": record.metric, **found})
                print(*rows[-1].values(), flush=True)
    print(write_results("kv_scores", rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
