"""The model of a sweep under one scheme after another, its float weights read from disk once where memory allows."""

from __future__ import annotations

import copy
import gc
import warnings
from typing import Final

import torch
from transformers import PreTrainedModel

from ..config import QllmConfig
from ..inplace import quantize_
from ..loading import load_model, model_on_meta
from ..method import RTN
from ..methods.memory import give_back

ROOM: Final = 2.2
"""Times the float weights that must be free for them to stay: themselves, the packed copy, and work on it."""


class Models:
    """Makes the model that a sweep wants next. One at a time: the last one is gone when the next one is asked for.

    Args:
        name: a folder or an id.
        keep: whether the float weights stay in memory; None decides by the memory that is free.
        dtype, device_map, trust_remote_code: as `load_model`.
    """

    def __init__(
        self,
        name: str,
        *,
        keep: bool | None = None,
        dtype: str = "auto",
        device_map: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.name = name
        self._options = {"dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code}
        self._float: PreTrainedModel | None = None
        self.reads = 0
        """How often weights were read from disk."""
        if keep is None:
            shapes = model_on_meta(name, dtype=dtype, trust_remote_code=trust_remote_code)
            size = sum(tensor.nbytes for tensor in shapes.parameters())
            keep = size * ROOM <= free_memory(device_map)
        self.keeps = keep
        """Whether the float weights stay in memory."""

    def get(self, config: QllmConfig | None) -> PreTrainedModel:
        """The model under a scheme; None is the float model.

        A method that calibrates may change norms and biases, which a copy would share with the float model: its
        weights are read again.

        Raises:
            CheckpointError, ModelError, ConfigError, CalibrationError: as `load_model`.
        """
        gc.collect()
        give_back()
        if config is not None:
            config = copy.deepcopy(config)  # a config remembers what it was calibrated on
        shares = config is None or (config.method == RTN and not config.needs_calibration)
        if not self.keeps or not shares:
            if not shares:
                self._float = None
            return self._read(config)
        if self._float is None:
            self._float = self._read(None)
        if config is None:
            return self._float
        if any(hasattr(module, "_hf_hook") for module in self._float.modules()):
            return self._read(config)  # spread over devices: the hooks that move its inputs belong to one model
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")
            return quantize_(twin(self._float), config)

    def _read(self, config: QllmConfig | None) -> PreTrainedModel:
        self.reads += 1
        return load_model(self.name, config, **self._options)  # type: ignore[arg-type]


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model with modules of its own on the same weights: packing it leaves the first one as it is."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo=shared)


def free_memory(device_map: str | None) -> int:
    """Bytes that are free where a model would go."""
    if device_map is not None and device_map not in ("cpu",) and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free)
    import psutil

    return int(psutil.virtual_memory().available)
