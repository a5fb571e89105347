"""Every benchmark of the study, on real items, for the two small models: that each task runs, and what it says of them.

    python benchmarks/scores.py DATA_FOLDER STORIES260K

Neither model can do these tasks; a score at chance is what an honest measurement of them gives. Rows that are not in
the data folder (CHID, RACE, Social IQa, C-Eval) are those of tests/data/eval, made by hand in the same form. MT-Bench's
answers are looked at for repetition and garbage; a rating needs a judge.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from machine import write_results

import qllm_hf
from qllm_hf.evaluation.dialogue import RATED
from qllm_hf.evaluation.engine import Subject, evaluate
from qllm_hf.evaluation.registry import TASKS, find_task, tasks_of
from qllm_hf.loading import load_model, load_tokenizer

HAND_MADE = Path(__file__).resolve().parent.parent / "tests" / "data" / "eval"
ITEMS = 50
SCHEMES = {"stories260K": ("FP16", "W4KV4"), "reference": ("FP16",)}


def main(data: Path, stories: str) -> None:
    names = [task for task in [*tasks_of(["all"]), "qllm_gaokao"] if task != RATED]
    rows: list[dict[str, Any]] = []
    for model_name in (stories, "reference"):
        tokenizer = load_tokenizer(model_name)
        for scheme in SCHEMES[Path(model_name).name]:
            config = None if scheme == "FP16" else qllm_hf.QllmConfig.from_scheme(scheme)
            model = load_model(model_name, config, dtype="float32").eval()
            for task in names:
                source = find_task(task).source
                folder = HAND_MADE if (HAND_MADE / f"{source.file}.jsonl").is_file() else data
                (record,) = evaluate(model, tokenizer, Subject(scheme), [task], limit=ITEMS, data_dir=folder)
                rows.append(
                    {
                        "model": Path(model_name).name,
                        "scheme": scheme,
                        "ability": record.ability,
                        "task": task,
                        "metric": record.metric,
                        "value": f"{record.value:.6g}",
                        "stderr": f"{record.stderr:.3g}",
                        "chance": "" if record.chance is None else f"{record.chance:.4g}",
                        "items": record.items,
                        "answered": f"{record.answered:.3f}",
                        "cut": record.cut,
                        "seconds": f"{record.seconds:.1f}",
                        "data": record.data["origin"],
                    }
                )
                print(*rows[-1].values(), flush=True)
    assert {row["task"] for row in rows} >= {task for task, info in TASKS.items() if info.documents and info.in_ability}
    print(write_results("scores", rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
