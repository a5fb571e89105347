"""LoRA adapters trained on packed weights: loss before and after, and that the weights below stay as they are.

    python benchmarks/adapters.py STORIES_MODEL STORIES_JSONL

STORIES_MODEL is a trained Llama of 260K parameters, STORIES_JSONL stories of the kind it was trained on. They are given
to it in capital letters, which it has not seen. Each scheme trains the same adapters on the same text for 30 steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import write_results
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import qllm_hf

STEPS, BATCH, TOKENS = 30, 8, 128
SCHEMES = ("FP16", "W8", "W4", "W4A8", "W4KV4", "W4A8KV4", "W2")


def load(path: str, scheme: str) -> PreTrainedModel:
    """The model in float32, quantized in groups of 32."""
    options: dict[str, Any] = {"dtype": torch.float32}
    if scheme != "FP16":
        options["quantization_config"] = qllm_hf.QllmConfig.from_scheme(scheme, w_group_size=32)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, **options)
    return model


def batches(path: str, text: Path) -> Tensor:
    """Token ids [STEPS, BATCH, TOKENS] of the stories in capital letters: a style the model has not seen."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    ids: list[int] = []
    for row in rows:
        ids += tokenizer(row.upper())["input_ids"]
        if len(ids) >= STEPS * BATCH * TOKENS:
            break
    return torch.tensor(ids[: STEPS * BATCH * TOKENS]).reshape(STEPS, BATCH, TOKENS)


def digest(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers that are no adapter's."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            found.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def train(path: str, scheme: str, data: Tensor, *, checkpointing: bool = False) -> dict[str, Any]:
    """Losses of the first and the last three steps in nats per token, and what stayed as it was."""
    import peft

    torch.manual_seed(0)
    model: Any = load(path, scheme)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    adapters = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, adapters).train()
    before = digest(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for ids in data:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        logits = model(input_ids=data[0]).logits
        model.save_pretrained(folder)
        again = peft.PeftModel.from_pretrained(load(path, scheme), folder).eval()
        difference = (again(input_ids=data[0]).logits - logits).abs().max().item()
    return {
        "scheme": scheme,
        "checkpointing": checkpointing,
        "loss_first": sum(losses[:3]) / 3,
        "loss_last": sum(losses[-3:]) / 3,
        "base_unchanged": digest(model) == before,
        "reloaded_max_logit_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    arguments = parser.parse_args()
    data = batches(arguments.model, arguments.text)
    runs = [*((scheme, False) for scheme in SCHEMES), ("W4A8KV4", True)]
    rows = []
    for scheme, checkpointing in runs:
        rows.append(train(arguments.model, scheme, data, checkpointing=checkpointing))
        print(rows[-1], flush=True)
    if not arguments.dry_run:
        print(write_results("adapters", rows))


if __name__ == "__main__":
    main()
