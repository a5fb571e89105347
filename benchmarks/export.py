"""Exported checkpoints against the packed ones they were made from: weights, logits, sizes, and who reads them.

    OMP_NUM_THREADS=1 python benchmarks/export.py [--vllm PYTHON] [--only REGEX]

The reference model in float32 and in bfloat16, in schemes of every kind that compressed-tensors can say, and in
float16, whose rounding is finer, in those for which vLLM has kernels on processors. Each is packed, exported, and
loaded again by transformers in both of its ways, and with --vllm by the vLLM of another Python. Columns:

- `max_dw`: largest difference between the weights that were exported and those that the packed model means;
- `default`, `dequantize`: largest difference of logits in the two ways of transformers from the packed model's own
  `dequantize()`, which multiplies as they do; "error: ..." where loading fails; `float_export`: in the float format;
- `from_packed`: the same between `dequantize()` and the packed model itself, for scale: kernels that work on packed
  weights add in another order, and with quantized inputs it is what these change;
- `vllm`: largest difference of log-probabilities of the prompt's tokens from `dequantize()`; `vllm_from_packed`: from
  the packed model; `vllm_tokens`: whether 16 greedy tokens are those of one of the two;
- bytes of the safetensors files.

Nothing here is timed, so any machine gives the same numbers up to its own rounding of sums.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import compressed_tensors
import torch
from machine import key_of, machine, read_rows, write_rows
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

from qllm_hf import QllmConfig, reference_model
from qllm_hf.export.run import export_checkpoint

PROMPT = "The cat sat on the mat and then it went to the"
NEW_TOKENS = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VLLM_READS = Path(__file__).parent / "peers" / "vllm_reads.py"


class Case(NamedTuple):
    """A scheme of weights and inputs, in one dtype."""

    dtype: str
    w: int
    w_symmetric: bool
    w_group_size: int
    a: int = 16
    a_symmetric: bool = False

    @property
    def name(self) -> str:
        inputs = f"A{self.a}{'sym' if self.a_symmetric else 'asym'}" if self.a < 16 else ""
        return f"W{self.w}{'sym' if self.w_symmetric else 'asym'} g{self.w_group_size} {inputs} {self.dtype}"

    def config(self) -> QllmConfig:
        return QllmConfig(**{key: value for key, value in self._asdict().items() if key != "dtype"})


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for w in range(2, 9):
            for symmetric in (True, False):
                for group_size in (32, 64, 128, -1) if w == 4 or dtype != "float16" else ():
                    yield Case(dtype, w, symmetric, group_size)
        for w, symmetric, group_size in ((8, True, -1), (8, True, 64), (8, False, -1), (4, True, 64), (4, False, 64)):
            for a_symmetric in (True, False):
                yield Case(dtype, w, symmetric, group_size, 8, a_symmetric)


@torch.no_grad()
def said(model: Any, ids: list[int]) -> dict[str, Any]:
    """Logits, log-probabilities of the prompt, and how it goes on."""
    tokens = torch.tensor([ids])
    logits = model(tokens, use_cache=False).logits.float()
    chosen = logits.log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None]).squeeze(-1)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
    return {
        "logits": logits,
        "logprobs": chosen.tolist(),
        "tokens": model.generate(tokens, **options)[0, len(ids) :].tolist(),
    }


def weights_apart(folder: Path, wanted: dict[str, Tensor]) -> float:
    """Largest difference of the weights, as transformers dequantizes them while loading."""
    found = dequantized(folder).state_dict()
    return max(float((found[name].float() - weight.float()).abs().max()) for name, weight in wanted.items())


def dequantized(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))


def logits_apart(load: Any, wanted: Tensor, ids: list[int]) -> float | str:
    try:
        return float((said(load(), ids)["logits"] - wanted).abs().max())
    except RuntimeError as error:
        return f"error: {str(error).split(',')[0]}"


def measure(case: Case, folder: Path, ids: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of the table, and what vLLM needs to know of the checkpoint."""
    packed_folder, out = folder / "packed", folder / case.name.replace(" ", "-")
    model = AutoModelForCausalLM.from_pretrained(
        reference_model(), quantization_config=case.config(), dtype=DTYPES[case.dtype]
    )
    model.save_pretrained(packed_folder)
    AutoTokenizer.from_pretrained(reference_model()).save_pretrained(packed_folder)
    done = export_checkpoint(str(packed_folder), out)
    plain = export_checkpoint(str(packed_folder), folder / "float", format="float", overwrite=True)
    packed = said(model.eval(), ids)
    meant_model = model.dequantize()
    meant = said(meant_model, ids)
    floats = said(AutoModelForCausalLM.from_pretrained(folder / "float"), ids)
    row = {
        **case._asdict(),
        "max_dw": weights_apart(out, dict(meant_model.state_dict())),
        "default": logits_apart(lambda: AutoModelForCausalLM.from_pretrained(out), meant["logits"], ids),
        "dequantize": logits_apart(lambda: dequantized(out), meant["logits"], ids),
        "float_export": float((floats["logits"] - meant["logits"]).abs().max()),
        "from_packed": float((packed["logits"] - meant["logits"]).abs().max()),
        "vllm": "",
        "vllm_from_packed": "",
        "vllm_tokens": "",
        "bytes_packed": done.bytes_before,
        "bytes_exported": done.bytes_after,
        "bytes_float": plain.bytes_after,
    }
    asked = {"name": case.name, "path": str(out), "dtype": case.dtype, "ids": ids}
    return row, {
        **asked,
        "packed": packed["logprobs"],
        "meant": meant["logprobs"],
        "texts": [packed["tokens"], meant["tokens"]],
    }


def ask_vllm(python: str, asked: list[dict[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """{name of a case: what vLLM said}."""
    given, found = folder / "cases.json", folder / "found.json"
    given.write_text(json.dumps(asked), encoding="utf-8")
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "PYTHONPATH": ""}
    subprocess.run([python, str(VLLM_READS), str(given), str(found)], env=environment, check=True)
    return {result["name"]: result for result in json.loads(found.read_text(encoding="utf-8"))}


def add_vllm(row: dict[str, Any], asked: dict[str, Any], result: dict[str, Any]) -> None:
    if "error" in result:
        row["vllm"] = f"error: {result['error'][:160]}"
        return
    for column, wanted in (("vllm", asked["meant"]), ("vllm_from_packed", asked["packed"])):
        row[column] = max(abs(a - b) for a, b in zip(result["logprobs"], wanted, strict=True))
    row["vllm_tokens"] = result["tokens"] in asked["texts"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", metavar="PYTHON", help="a Python that has vLLM")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose names match; other rows are kept")
    arguments = parser.parse_args()
    ids = AutoTokenizer.from_pretrained(reference_model())(PROMPT)["input_ids"]
    rows, asked = [], []
    with tempfile.TemporaryDirectory() as name:
        for case in cases():
            if not re.search(arguments.only, case.name):
                continue
            with contextlib.redirect_stderr(io.StringIO()):
                row, question = measure(case, Path(name), ids)
            rows.append(row)
            asked.append(question)
            print(case.name, {key: row[key] for key in ("max_dw", "default", "dequantize")}, flush=True)
        if arguments.vllm:
            found = ask_vllm(arguments.vllm, asked, Path(name))
            for row, question in zip(rows, asked, strict=True):
                add_vllm(row, question, found[question["name"]])
    versions = {**machine(), "compressed_tensors": compressed_tensors.__version__}
    kept = read_rows("export", Case._fields)
    kept.update({key_of(row, Case._fields): {**row, **versions} for row in rows})
    places = {tuple(str(value) for value in case): place for place, case in enumerate(cases())}
    print(write_rows("export", [kept[key] for key in sorted(kept, key=places.__getitem__)]))


if __name__ == "__main__":
    main()
