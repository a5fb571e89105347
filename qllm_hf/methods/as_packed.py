"""A float model that takes the paths of a packed one: what it reads and computes is then what will be packed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers import PreTrainedModel

from ..families import family


def run_as_packed_(model: PreTrainedModel) -> None:
    """In evaluation mode, and with the settings that packed weights need.

    Jamba then calls a layer whose matrix it would take itself, and RWKV no longer halves weights in place.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._is_quantized = True  # as transformers marks what it quantizes
    for key, value in family(model.config.model_type).config_updates.items():
        setattr(model.config, key, value)


@contextlib.contextmanager
def running_as_packed(model: PreTrainedModel) -> Iterator[None]:
    """As `run_as_packed_`, but only within the block of code."""
    modes = [(module, module.training) for module in model.modules()]
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    before = [(config, dict(config.__dict__)) for config in configs]
    run_as_packed_(model)
    try:
        yield
    finally:
        for config, values in before:
            for key in config.__dict__.keys() - values.keys():
                del config.__dict__[key]
            config.__dict__.update(values)
        for module, training in modes:
            module.training = training
