"""What the cost model predicts without weights, next to the bytes of real tensors, files and caches.

    python benchmarks/cost.py

Tiny random models of every shape of cache (all heads, grouped, one head, windows, latents, states), and
stories260K where the folder `shared/` is: quantized under each scheme, saved, and made to generate, with several
batches and lengths, below and above the window. Writes benchmarks/results/cost.csv; ends with an error where
prediction and measurement differ by more than 2 %.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from machine import write_results
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "tests"))

from tiny_models import MODELS, float_model  # noqa: E402

import qllm_hf  # noqa: E402
from qllm_hf.cache import cache_nbytes  # noqa: E402
from qllm_hf.checkpoint import read_checkpoint  # noqa: E402
from qllm_hf.cost.model import cost_of  # noqa: E402

FAMILIES = ("llama", "opt", "falcon", "mixtral", "mistral", "gemma3_text", "gpt_oss", "deepseek_v3", "mamba", "jamba")
SCHEMES = ("FP16", "W8", "W4", "W3", "KV8", "KV4", "W4KV8")
SIZES = ((1, 5), (3, 5), (2, 40))
"""Batches and tokens in the cache; windows here are 8."""
NEW = 3
ALLOWED = 0.02


def on_meta(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same shapes without weights."""
    with torch.device("meta"):
        twin: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    return twin.eval()


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of the state dict, tied tensors once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in model.state_dict().values()}
    return sum(storage.nbytes() for storage in storages.values())


def file_bytes(model: PreTrainedModel) -> int:
    """Bytes of all tensors in the files of a saved model."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(tensor.nbytes for tensor in read_checkpoint(Path(folder)).tensors.values())


def generated_cache(model: PreTrainedModel, batch: int, tokens: int, **options: Any) -> Any:
    """The cache of so many tokens that `generate` leaves behind; the last token is written and not read."""
    ids = torch.randint(3, model.config.vocab_size, (batch, tokens + 1 - NEW), generator=torch.manual_seed(0))
    mask = torch.ones_like(ids)
    output: Any = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        **options,
    )
    return output.past_key_values


def state_bytes(cache: Any) -> int:
    """Bytes of the states in a real cache."""
    found = []
    for layer in cache.layers:
        for name in ("conv_states", "recurrent_states"):
            found += [state for state in getattr(layer, name, {}).values() if state is not None]
    return sum(state.numel() * state.element_size() for state in found)


def compare(name: str, make: Any, scheme: str, options: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of (quantity, batch, tokens, predicted, measured) for one model under one scheme.

    Args:
        make: gives the float model, new each time.
    """
    model = make()
    config = None if scheme == "FP16" else qllm_hf.QllmConfig.from_scheme(scheme)
    cost = cost_of(on_meta(model), config)
    if config is not None:
        qllm_hf.quantize_(model, config)
    common = {"model": name, "scheme": scheme, "dtype": cost.dtype}
    for quantity, measured in (("weights", tensor_bytes(model)), ("file", file_bytes(model))):
        yield {**common, "quantity": quantity, "batch": "", "tokens": ""} | _pair(cost.weight_bytes, measured)
    for batch, tokens in SIZES:
        cache = generated_cache(model, batch, tokens, **(options or {}))
        where = {**common, "batch": batch, "tokens": tokens}
        yield {**where, "quantity": "kv"} | _pair(cost.kv_bytes(batch, tokens), cache_nbytes(cache))
        yield {**where, "quantity": "states"} | _pair(batch * cost.state_bytes, state_bytes(cache))


def _pair(predicted: int, measured: int) -> dict[str, Any]:
    ratio = round(predicted / measured, 6) if measured else float(predicted == measured)
    return {"predicted": predicted, "measured": measured, "ratio": ratio}


def makes_sense(name: str, scheme: str) -> bool:
    """Whether the model has what the scheme quantizes."""
    return "KV" not in scheme or name not in MODELS or MODELS[name].has_kv


def sources() -> dict[str, tuple[Any, dict[str, Any]]]:
    """{name: (what makes the float model, arguments that generation needs)}."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {
        name: (lambda name=name: float_model(name), dict(MODELS[name].generate)) for name in FAMILIES
    }
    found["llama, bfloat16"] = (lambda: float_model("llama").to(torch.bfloat16), {})
    stories = REPO.parent / "shared" / "models" / "stories260K"
    if stories.is_dir():
        found["stories260K"] = (lambda: AutoModelForCausalLM.from_pretrained(stories), {})
    return found


def main() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    rows = []
    for name, (make, options) in sources().items():
        for scheme in SCHEMES:
            if not makes_sense(name, scheme):
                continue
            found = list(compare(name, make, scheme, options))
            rows += [row for row in found if row["predicted"] or row["measured"]]
            worst = max(found, key=lambda row: abs(row["ratio"] - 1))
            print(f"{name} {scheme}: {len(found)} sizes, worst {worst['quantity']} {worst['ratio']:.6f}", flush=True)
    print(write_results("cost", rows))
    wrong = [row for row in rows if abs(row["ratio"] - 1) > ALLOWED]
    if wrong:
        sys.exit(f"{len(wrong)} predictions are off by more than {ALLOWED:.0%}, such as {wrong[0]}")


if __name__ == "__main__":
    main()
