"""Our scores against plain lm_eval's on the same items: item by item, and items per second, with the same model.

    python benchmarks/evaluation.py DATA_FOLDER [MODEL ...]

Verified first, in float64, where nothing but a difference in what is asked can show: every log-likelihood within 1e-5,
every written text and every score the same. In float32 the sum over a long text differs by more than that between any
two batch sizes, lm_eval's own among them; both differences are in the table. Then timed in float32: both at their best
batch size of a few, in turns, medians of three.

lm_eval's `wikitext` predicts the first token of a text from itself where the tokenizer adds one. It is told not to add
one here: the same text without that mistake.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import write_results

from qllm_hf import QllmConfig
from qllm_hf.evaluation.harness import load_task, quiet_lm_eval
from qllm_hf.evaluation.lm import QllmLM
from qllm_hf.loading import load_model, load_tokenizer

TASKS = {
    "piqa": 100,
    "winogrande": 100,
    "arc_easy": 80,
    "hellaswag": 60,
    "boolq": 40,
    "truthfulqa_mc1": 30,
    "lambada_openai": 100,
    "wikitext": 3,
    "gsm8k": 16,
    "mini_arithmetic": 100,
    "mini_second_turn": 100,
}
QUANTIZED = ("piqa", "arc_easy", "mini_second_turn")
"""Asked again at `SCHEME`: what lm_eval's way costs, the quantized model itself being the same."""
SCHEME = "W4KV4"
BATCHES = (8, 32, 128)
ROUNDS = 3


def ask(lm: Any, task: str, data: Path, limit: int) -> tuple[list[Any], dict[str, Any], float]:
    """(answers to every request, lm_eval's scores, seconds in the model)."""
    import lm_eval.evaluator

    tasks = {"tasks": load_task(task, data, None).tasks}
    begin = time.perf_counter()
    results = lm_eval.evaluator.evaluate(lm, tasks, limit=limit, bootstrap_iters=0)
    seconds = time.perf_counter() - begin
    (samples,) = results["samples"].values()
    (scores,) = results["results"].values()
    kept = {key: value for key, value in scores.items() if isinstance(value, float)}
    return [answer for sample in samples for answer in sample["filtered_resps"]], kept, seconds


def difference(task: str, ours: list[Any], theirs: list[Any], *, same_texts: bool = True) -> float:
    """The largest difference of two log-likelihoods; texts and verdicts must be the same, if they are asked to be."""
    assert len(ours) == len(theirs), task
    largest = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, str):
            assert mine == other or not same_texts, (task, mine, other)
            continue
        if isinstance(mine, tuple):
            assert mine[1] == other[1] or not same_texts, task
            mine, other = mine[0], other[0]
        largest = max(largest, abs(mine - other))
    return largest


def _plain(model: Any, tokenizer: Any, batch: int, *, bos: bool | None) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, add_bos_token=bos)


def compare(
    name: str, scheme: str, task: str, limit: int, data: Path, models: dict[str, Any], tokenizer: Any
) -> dict[str, str]:
    """One row of the table: differences in float64 and float32, and speeds in float32."""
    bos = False if task == "wikitext" else None
    exact = models["float64"]
    ours, scores, _ = ask(QllmLM(exact, tokenizer=tokenizer), task, data, limit)
    theirs, plain_scores, _ = ask(_plain(exact, tokenizer, 1, bos=bos), task, data, limit)
    largest = difference(task, ours, theirs)
    assert scores.keys() == plain_scores.keys()
    apart = max(abs(scores[key] - plain_scores[key]) / max(1, abs(plain_scores[key])) for key in scores)
    assert largest < 1e-5 and apart < 1e-9, (name, task, largest, apart)

    model = models["float32"]
    makers: dict[str, Any] = {"ours": partial(QllmLM, model, tokenizer=tokenizer)}
    makers |= {f"lm_eval {size}": partial(_plain, model, tokenizer, size, bos=bos) for size in BATCHES}
    times: dict[str, list[float]] = {way: [] for way in makers}
    answers: dict[str, list[Any]] = {}
    for _ in range(ROUNDS):
        for way, make in makers.items():
            answers[way], _, seconds = ask(make(), task, data, limit)
            times[way].append(seconds)
    medians = {way: statistics.median(found) for way, found in times.items()}
    best = min((way for way in medians if way != "ours"), key=medians.__getitem__)
    apart_32 = partial(difference, task, same_texts=False)
    return {
        "model": Path(name).name,
        "scheme": scheme,
        "task": task,
        "items": str(limit),
        "requests": str(len(ours)),
        "float64_largest_difference": f"{largest:.1e}",
        "float64_score_difference": f"{apart:.1e}",
        "float32_largest_difference": f"{apart_32(answers['ours'], answers['lm_eval 8']):.1e}",
        "float32_lm_eval_batch_8_to_32": f"{apart_32(answers['lm_eval 8'], answers['lm_eval 32']):.1e}",
        "ours_items_per_second": f"{limit / medians['ours']:.1f}",
        "lm_eval_items_per_second": f"{limit / medians[best]:.1f}",
        "lm_eval_batch": best.split()[-1],
        "ratio": f"{medians[best] / medians['ours']:.2f}",
    }


def main(data: Path, names: list[str]) -> None:
    rows = []
    for name in names:
        tokenizer = load_tokenizer(name)
        for scheme in ("FP16", SCHEME):
            config = None if scheme == "FP16" else QllmConfig.from_scheme(scheme)
            models = {dtype: load_model(name, config, dtype=dtype).eval() for dtype in ("float32", "float64")}
            for task, limit in TASKS.items():
                if scheme == "FP16" or task in QUANTIZED:
                    with quiet_lm_eval():
                        rows.append(compare(name, scheme, task, limit, data, models, tokenizer))
                    print(*rows[-1].values(), flush=True)
    print(write_results("evaluation", rows))


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]), sys.argv[2:] or ["reference"])
