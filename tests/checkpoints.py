"""Checkpoints of tiny models, float and packed, for tests of loading."""

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from tiny_models import float_model, prompt
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from qllm_hf import QllmConfig

W4KV8 = {"w": 4, "kv": 8, "w_group_size": 32}


def read_bits(bits: Iterable[int]) -> list[int]:
    """Those whose layout the installed compressed-tensors shares: before 0.18 it had another one for the odd ones."""
    has_all = Version(version("compressed-tensors")) >= Version("0.18")
    return [each for each in bits if has_all or each in (2, 4, 8)]


def load(path: Path, config: QllmConfig | dict[str, Any] | None = None, **options: Any) -> PreTrainedModel:
    """A model in float32, ready to be compared."""
    options = {"dtype": torch.float32, **options}
    if config is not None:  # given as None, transformers would forget the checkpoint's own
        options["quantization_config"] = config
    return AutoModelForCausalLM.from_pretrained(path, **options).eval()


@torch.no_grad()
def logits(model: PreTrainedModel, name: str = "llama") -> Tensor:
    """Of the family's prompt, scored without a cache."""
    return model(prompt(name), use_cache=False).logits


def give_input_order(model: PreTrainedModel, *modules: str) -> None:
    """Let packed layers read their inputs in an order, as import leaves those in act order."""
    for number, name in enumerate(modules):
        layer = model.get_submodule(name)
        generator = torch.Generator().manual_seed(number)
        layer.assign_input_order(torch.randperm(layer.in_features, generator=generator).int())
    model.config.quantization_config.input_orders = list(modules)


def float_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float checkpoints by family, in several files; for a fixture."""
    folder = tmp_path_factory.mktemp("float")
    for name in ("llama", "mixtral", "gpt2"):
        float_model(name).save_pretrained(folder / name, max_shard_size="60KB")
    return folder


def packed_checkpoints(floats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved packed as W4KV8; for a fixture."""
    folder = tmp_path_factory.mktemp("packed")
    for path in floats.iterdir():
        load(path, QllmConfig(**W4KV8)).save_pretrained(folder / path.name, max_shard_size="60KB")
    return folder
