"""Does an exported GGUF file hold the same weights, and what does llama.cpp compute with them?

    python benchmarks/gguf_files.py PYTHON PACKED [PACKED ..]

PYTHON is the interpreter of an environment with llama-cpp-python, each PACKED a folder of `qllm-hf quantize`. For each:

- weights: the largest difference of any, read back by the library gguf. The answer has to be 0.
- logits of llama.cpp against ours in float32, as a part of the largest; the same with all weights of the file written
  out in float32, which llama.cpp then multiplies without rounding the input: what is left is its own arithmetic.
- greedy tokens that agree before the first that does not, and texts that are cut into the same tokens.

Writes results/gguf_files.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import gguf
import numpy as np
import torch
from machine import write_results
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import qllm_hf  # noqa: F401  (teaches transformers the format)
from qllm_hf.export.gguf import _in_pairs, export_gguf
from qllm_hf.nn import PackedLinear

READER = Path(__file__).resolve().parent / "peers" / "llama_reader.py"
TEXTS = (
    "Once upon a time, there was a little girl named Lily.",
    'She said: "I don\'t know!" and 3 dogs   ran.\nThe end — naïve café.',
    "Hello\n\nworld  two",
    " x",
)
PROMPTS, LENGTH, STEPS = 4, 16, 32


@dataclass(frozen=True)
class Row:
    """What was found of one file."""

    model: str
    scheme: str
    blocks: str
    weights_differing_by: float
    logits: float
    logits_of_float32_weights: float
    greedy_tokens: int
    greedy_tokens_agreeing: int
    vocabulary: str
    texts: int
    texts_cut_alike: int
    bytes: int


@torch.no_grad()
def compare(python: str, folder: Path) -> Row:
    """The row of one packed model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config.vocab_size, (PROMPTS, LENGTH), generator=generator)
    with tempfile.TemporaryDirectory() as work:
        done = export_gguf(str(folder), Path(work) / "model.gguf")
        wide = Path(work) / "float32.gguf"
        worst = _read_back(done.file, model, wide)
        texts = list(TEXTS) if done.vocabulary != "none" else []
        answers = [_ask(python, file, ids, texts, Path(work)) for file in (done.file, wide)]
    ours = torch.cat([model(row[None]).logits for row in ids])
    largest = float(ours.abs().max())
    off = [float((torch.from_numpy(answer["logits"]) - ours).abs().max()) / largest for answer in answers]
    options: dict[str, Any] = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
    expected = [model.generate(row[None], eos_token_id=None, **options)[0, LENGTH:].tolist() for row in ids]
    agreeing = [_agreeing(a, b) for a, b in zip(answers[0]["greedy"].tolist(), expected, strict=True)]
    cut = json.loads(answers[0]["cut"].tobytes())
    tokenizer = AutoTokenizer.from_pretrained(folder) if texts else None
    alike = sum(tokenizer(text).input_ids == tokens for text, tokens in zip(texts, cut, strict=True)) if texts else 0
    return Row(
        model=folder.name,
        scheme=str(config.quantization_config.scheme),
        blocks=", ".join(f"{count} {kind}" for kind, count in done.blocks.items()),
        weights_differing_by=worst,
        logits=round(off[0], 5),
        logits_of_float32_weights=round(off[1], 5),
        greedy_tokens=PROMPTS * STEPS,
        greedy_tokens_agreeing=sum(agreeing),
        vocabulary=done.vocabulary,
        texts=len(texts),
        texts_cut_alike=alike,
        bytes=done.bytes,
    )


def _read_back(file: Path, model: Any, wide: Path) -> float:
    """The largest difference of a weight in the file to ours; writes `wide`, the same file in float32."""
    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], model.config.num_hidden_layers)
    writer = gguf.GGUFWriter(wide, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    found: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        found[tensor.name] = torch.from_numpy(values)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    worst = 0.0
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            weight = f"{name}.weight"
            ours = module.packed("weight").decode(torch.float32)
            ours = _in_pairs(ours, weight, model.config.to_dict()) if architecture == "llama" else ours
            theirs = found[names.get_name(weight, try_suffixes=(".weight",))]
            worst = max(worst, float((ours - theirs).abs().max()))
    return worst


def _ask(python: str, file: Path, ids: Tensor, texts: list[str], work: Path) -> dict[str, Any]:
    asked, out = work / "asked.json", work / "out.npz"
    asked.write_text(json.dumps({"ids": ids.tolist(), "steps": STEPS, "texts": texts}), encoding="utf-8")
    subprocess.run([python, str(READER), str(file), str(asked), str(out)], check=True)
    return dict(np.load(out))


def _agreeing(found: list[int], expected: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), len(expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("packed", type=Path, nargs="+")
    given = parser.parse_args()
    rows = []
    for folder in given.packed:
        rows.append(compare(given.python, folder))
        print(asdict(rows[-1]), flush=True)
    write_results("gguf_files", map(asdict, rows))


if __name__ == "__main__":
    main()
