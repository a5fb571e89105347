"""What the methods cost in loss and in abilities, on two small models, with calibration text that no test contains.

    python benchmarks/methods.py DATA_FOLDER STORIES260K [--abilities]

DATA_FOLDER holds calibration/tinystories_calib.jsonl and basic_nlp/tinystories.jsonl (for stories260K); the reference
model is calibrated on "curriculum", whose texts share no key with those it is tested on. Both are scored in float32, in
blocks of 512 tokens. What is compared is the same block under two schemes, so the standard error is that of
the paired difference. "mixed" has layers of 2 to 8 bits that cost as much as the uniform scheme in its row, with GPTQ.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from machine import RESULTS, machine, write_rows
from torch import Tensor
from transformers import PreTrainedModel

from qllm_hf import QllmConfig, measure_sensitivity, quantize_
from qllm_hf.curriculum.tasks import TASKS, held_out_items
from qllm_hf.evaluation.engine import Subject, evaluate
from qllm_hf.loading import load_model, load_tokenizer
from qllm_hf.methods.calibration import CURRICULUM, read_calibration, token_blocks
from qllm_hf.scheme import Scheme

SEQLEN, CALIBRATION_BLOCKS, TEST_BLOCKS = 512, 64, 64
SCHEMES = ("W4", "W3", "W2", "W4A8", "W4A4")
GROUPS = (128, 32, 64)
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {},
    "awq": {"method": "awq"},
    "smoothquant": {"method": "smoothquant"},
    "smoothquant auto": {"method": "smoothquant", "method_options": {"alpha": "auto"}},
    "gptq": {"method": "gptq"},
    "awq+gptq": {"method": "awq+gptq"},
    "smoothquant+gptq": {"method": "smoothquant+gptq"},
    "mixed": {"method": "gptq"},
}
ABILITIES = ("mini_cloze", "mini_arithmetic", "mini_second_turn")
ITEMS = 100
KEYS = (
    "model",
    "scheme",
    "group",
    "method",
    "loss",
    "over_float",
    "over_float_stderr",
    "over_rtn",
    "over_rtn_stderr",
)
ACTIVATIONS_ONLY = ("smoothquant auto", "smoothquant+gptq")


@dataclass(frozen=True)
class Text:
    """Tokens of one model: int64 [N, T] to calibrate on, and others to test on."""

    calibration: Tensor
    test: Tensor


def text_of(name: str, data: Path) -> Text:
    """Calibration and test tokens of a model, disjoint."""
    tokenizer = load_tokenizer(name)
    if name == "reference":
        source: Any = CURRICULUM
        short = [task for task in TASKS.values() if task.longest <= SEQLEN]
        tests = [f"{item.prompt}{item.answer}\n" for task in short for item in held_out_items(task, 150)]
        Random(0).shuffle(tests)
    else:
        source = data / "calibration" / "tinystories_calib.jsonl"
        lines = (data / "basic_nlp" / "tinystories.jsonl").read_text(encoding="utf-8").splitlines()
        tests = [json.loads(line)["text"] for line in lines]
    seen = read_calibration(source, tokenizer, samples=CALIBRATION_BLOCKS, seqlen=SEQLEN).ids
    return Text(seen, token_blocks(tests, tokenizer, samples=TEST_BLOCKS, seqlen=SEQLEN))


@torch.no_grad()
def losses(model: PreTrainedModel, blocks: Tensor) -> Tensor:
    """Mean loss of each block, nats per token, [N]."""
    found = []
    for ids in blocks.split(8):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        found.append(each.mean(1))
    return torch.cat(found).double()


def paired(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean of a - b over the same blocks, and its standard error."""
    difference = a - b
    return float(difference.mean()), float(difference.std() / len(difference) ** 0.5)


def config_of(scheme: str, size: int, method: str, text: Text, table: dict[str, Any]) -> QllmConfig:
    """The config of one row."""
    given: dict[str, Any] = {**METHODS[method], "w_group_size": size}
    if given.get("method"):
        given["calibration"] = text.calibration
    if method != "mixed":
        return QllmConfig.from_scheme(scheme, **given)
    parsed = Scheme.parse(scheme)
    return QllmConfig.from_budget(uniform_bits(table, parsed.w), table, a=parsed.a, **given)


def uniform_bits(table: dict[str, Any], bits: int) -> float:
    """Stored bits per weight of a uniform scheme over the layers of a sensitivity table."""
    layers = table["layers"].values()
    return float(sum(layer["bits"][str(bits)]["size"] for layer in layers) / sum(layer["elements"] for layer in layers))


def rows_of(name: str, data: Path, abilities: bool, done: set[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """A row for each scheme, group size and method of one model that is not `done`."""
    text, label = text_of(name, data), Path(name).name
    base = losses(load_model(name, dtype="float32").eval(), text.test)
    if (label, "FP32", "", "") not in done:
        yield {"model": label, "scheme": "FP32", "group": "", "method": "", **_loss(base, base, base)}
    for size in GROUPS:
        wanted = [
            (scheme, method)
            for scheme in SCHEMES
            for method in METHODS
            if (label, scheme, str(size), method) not in done and (method not in ACTIVATIONS_ONLY or "A" in scheme)
        ]
        if not wanted:
            continue
        table: dict[str, Any] = {}
        if "mixed" in (method for _, method in wanted):
            model = load_model(name, dtype="float32")
            table = measure_sensitivity(model, w_group_size=size, calibration=text.calibration).to_dict()
        for scheme in dict.fromkeys(scheme for scheme, _ in wanted):
            plain = quantize_(load_model(name, dtype="float32"), config_of(scheme, size, "rtn", text, table))
            nearest = losses(plain, text.test)
            for method in [method for other, method in wanted if other == scheme]:
                model = quantize_(load_model(name, dtype="float32"), config_of(scheme, size, method, text, table))
                found = losses(model, text.test)
                row = {"model": label, "scheme": scheme, "group": size, "method": method}
                row |= _loss(found, base, nearest)
                if abilities and name == "reference" and size == GROUPS[0]:
                    row |= scores(model, name, scheme, method)
                print(*row.values(), flush=True)
                yield row


def _loss(found: Tensor, base: Tensor, nearest: Tensor) -> dict[str, str]:
    """Loss, and its differences from the float model and from rounding to nearest, with standard errors."""
    (up, up_error), (gain, gain_error) = paired(found, base), paired(found, nearest)
    return {
        "loss": f"{found.mean():.4f}",
        "over_float": f"{up:.4f}",
        "over_float_stderr": f"{up_error:.4f}",
        "over_rtn": f"{gain:.4f}",
        "over_rtn_stderr": f"{gain_error:.4f}",
    }


def scores(model: PreTrainedModel, name: str, scheme: str, method: str) -> dict[str, str]:
    """Task -> score and standard error."""
    records = evaluate(model, load_tokenizer(name), Subject(f"{scheme} {method}"), list(ABILITIES), limit=ITEMS)
    return {record.task: f"{record.value:.3f}({record.stderr:.3f})" for record in records}


def main(data: Path, stories: str, abilities: bool) -> None:
    # the run takes an hour: the file is whole after every row, and rows that are there are not made again
    path = RESULTS / "methods.csv"
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {(row["model"], row["scheme"], row["group"], row["method"]) for row in rows}
    for name in (stories, "reference"):
        for row in rows_of(name, data, abilities, done):
            rows.append({**row, **machine()})
            columns = dict.fromkeys([*KEYS, *ABILITIES, *machine()])
            write_rows("methods", [{column: one.get(column, "") for column in columns} for one in rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "--abilities" in sys.argv[3:])
