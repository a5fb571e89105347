"""qllm-hf quickstart: one model under several schemes, what it writes, what it still can do, and what it takes."""

from __future__ import annotations

import math
import statistics
import sys
import textwrap
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..builtin import REFERENCE
from . import options
from .output import UsageError, answer, answering, note

if TYPE_CHECKING:
    from ..evaluation.record import Record

SCHEMES = "FP16,W8,W4,W4KV8,W2,KV2"
ITEMS = 24
PROMPTS = ("Once upon a time there was a", "Question: 27+8-5+4=?\nAnswer:")
TALK = (
    {"role": "user", "content": "I am Mia. I have a red kite and a blue drum."},
    {"role": "assistant", "content": "Hello Mia. So you have a kite and a drum."},
    {"role": "user", "content": "What colour is my kite?"},
)
NEXT = (
    ('qllm-hf generate {model} "Once upon a time" --scheme W3KV4', "another scheme, your own words"),
    ("qllm-hf quantize {model} --scheme W4KV8 -o model-w4kv8", "save the packed model"),
    ("qllm-hf info model-w4kv8", "what is in it, tensor by tensor"),
    ("qllm-hf quickstart path/or/hub-id --schemes FP16,W4", "the same for a model of yours"),
)


def quickstart(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, an id on the Hub, or the model that comes with qllm_hf.")
    ] = REFERENCE,
    schemes: Annotated[str, typer.Option(help="What to compare, with commas between.")] = SCHEMES,
    limit: Annotated[
        int, typer.Option(min=2, help="Items of each task: more take longer and make the errors smaller.")
    ] = ITEMS,
    dtype: options.DtypeOption = options.Dtype.auto,
    device_map: options.DeviceMap = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare schemes on one model: what it writes, its scores in five groups of abilities, bytes, speed.

    The scores are those of 17 miniature tasks that need no download. The reference model was trained on tasks of this
    kind, on other items; for other models they are short questions without examples.

    \b
    Examples:
      qllm-hf quickstart
      qllm-hf quickstart path/to/model --schemes FP16,W4,W3 --limit 100
    """
    # six progress bars of a small model say nothing; in a log, no bar does
    with answering(as_json=as_json, quiet=quiet or model == REFERENCE or not sys.stderr.isatty(), debug=debug):
        names = [name.strip() for name in schemes.split(",") if name.strip()]
        if not names:
            raise UsageError("--schemes names none. Give some, such as --schemes FP16,W4,W4KV8.")
        configs = {name: options.make_config(name) for name in names}  # all of them, before any is worked on
        from ..loading import load_model, load_tokenizer

        tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        rows = []
        for name, config in configs.items():
            begin = time.perf_counter()
            loaded = load_model(
                model,
                None if config is None or str(config.scheme) == "FP16" else config,
                dtype=dtype.value,
                device_map=device_map,
                trust_remote_code=trust_remote_code,
            )
            row = _measure(loaded, tokenizer, name, limit)
            rows.append(row)
            if not as_json:
                answer(row, _written_text(row), as_json=False)
            if not quiet:
                note(f"{name}: {time.perf_counter() - begin:.0f} s")
        answer({"model": model, "rows": rows}, f"{_table(rows)}\n\n{_next(model)}", as_json=as_json)


def _measure(model: Any, tokenizer: Any, scheme: str, limit: int) -> dict[str, Any]:
    """Texts, speed, bytes and scores of one model, as JSON has them."""
    from ..evaluation.engine import evaluate
    from ..evaluation.record import ability_scores
    from ..reporting.model import report

    what = report(model)
    texts, speeds = _write(model, tokenizer)
    records = evaluate(model, tokenizer, scheme, limit=limit)
    return {
        "scheme": scheme,
        "dtype": what.dtype,
        "bits_per_weight": what.bits_per_weight or 8 * model.dtype.itemsize,
        "weight_bytes": what.parameter_bytes_after,
        "kv_bytes_per_token": what.kv_bytes_per_token,
        "tokens_per_second": statistics.median(speeds),
        "texts": texts,
        "abilities": {ability: asdict(score) for ability, score in ability_scores(records).items()},
        "perplexity": _perplexity(records),
        "records": [asdict(record) for record in records],
    }


def _write(model: Any, tokenizer: Any) -> tuple[list[dict[str, str]], list[float]]:
    """What the model goes on to write, and its tokens per second each time; the first time, which warms up, apart."""
    inputs = [(prompt, tokenizer(prompt, return_tensors="pt")) for prompt in PROMPTS]
    if tokenizer.chat_template:
        shown = "\n".join(message["content"] for message in TALK)
        turns = tokenizer.apply_chat_template(
            list(TALK), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        inputs.append((shown, turns))
    texts, speeds = [], []
    for prompt, encoded in [inputs[0], *inputs]:
        ids, mask = encoded["input_ids"].to(model.device), encoded["attention_mask"].to(model.device)
        begin = time.perf_counter()
        output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=80, do_sample=False)
        new = output[0, ids.shape[1] :]
        speeds.append(len(new) / (time.perf_counter() - begin))
        texts.append({"prompt": prompt, "text": tokenizer.decode(new, skip_special_tokens=True)})
    return texts[1:], speeds[1:]


def _perplexity(records: list[Record]) -> float:
    (loss,) = (record.value for record in records if record.metric == "nats_per_word")
    return math.exp(min(loss, 700.0))  # what a destroyed model has would overflow


def _written_text(row: dict[str, Any]) -> str:
    lines = [f"== {row['scheme']} =="]
    for each in row["texts"]:
        shown = f"{each['prompt']} >>> {each['text'].strip()}"
        for line in shown.split("\n"):
            lines.append(textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="  "))
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> str:
    """One line per scheme, the chance of every ability below."""
    from ..reporting.text import bytes_text, table

    abilities = list(rows[0]["abilities"])
    header = ["", "bits/weight", "weights", "KV/token", *abilities, "perplexity", "tokens/s"]
    cells = [header]
    for row in rows:
        bits = f"{row['bits_per_weight']:.2f}"
        scores = [
            f"{score['value']:.2f}±{score['stderr']:.2f}".replace("±0", "±") for score in row["abilities"].values()
        ]
        sizes = [bytes_text(row["weight_bytes"]), bytes_text(row["kv_bytes_per_token"])]
        cells.append(
            [row["scheme"], bits, *sizes, *scores, f"{row['perplexity']:.2f}", f"{row['tokens_per_second']:.0f}"]
        )
    chances = [f"{score['chance']:.2f}" for score in rows[0]["abilities"].values()]
    cells.append(["chance", "", "", "", *chances, "", ""])
    counts = [record["items"] for record in rows[0]["records"]]
    hidden = 1 - 0.05 ** (1 / counts[0])  # wrong answers that a sample without any leaves possible, at 95 %
    remarks = (
        f"Scores: the part of right answers and its standard error, {counts[0]} items of each of {len(counts)} tasks. "
        f"±.00 is a task without an error; with {counts[0]} items it may still have {hidden:.0%} of them. Perplexity: "
        "of the words of stories. Bits per weight with scales and zero points; weights with embeddings and norms."
    )
    return f"{table(cells, 'l' + 'r' * (len(header) - 1), indent=0)}\n\n{textwrap.fill(remarks, 100)}"


def _next(model: str) -> str:
    from ..reporting.text import table

    rows = [[command.format(model=model), why] for command, why in NEXT]
    return "What to run next\n" + table(rows, "ll")
