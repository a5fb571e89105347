"""Which models are in memory: the twins of one model at a time, within a limit of bytes.

A visitor compares twins (the float model and a quantized one) of the same model. Those of another model leave before
its own come in, and of one model those leave first that were used longest ago.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import QllmConfig
from ..errors import ModelError
from ..loading import load_model, load_tokenizer, model_on_meta, stored_config
from ..reporting.model import plan_report
from ..reporting.tensors import parameter_bytes
from ..reporting.text import bytes_text
from ..scheme import Scheme


@dataclass(frozen=True)
class Twin:
    """A model in memory under one scheme; `weight_bytes` are those of its tensors."""

    place: str
    scheme: str
    model: Any
    tokenizer: Any
    weight_bytes: int


class Holder:
    """Models for all visitors, in at most `limit` bytes of weights.

    Args:
        device: where weights go, as transformers' `device_map`.
    """

    def __init__(self, limit: int, device: str | None = None) -> None:
        self.limit, self.device = limit, device
        self._twins: OrderedDict[str, Twin] = OrderedDict()
        self._place = ""
        self._lock = threading.RLock()
        self._sizes: dict[tuple[str, str], int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in memory."""
        with self._lock:
            return sum(twin.weight_bytes for twin in self._twins.values())

    @property
    def held(self) -> tuple[tuple[str, str], ...]:
        """(place, scheme) of what is in memory, the one used longest ago first."""
        with self._lock:
            return tuple((twin.place, twin.scheme) for twin in self._twins.values())

    def check(self, place: str, schemes: Sequence[str]) -> bool:
        """Whether the twins of one model fit in memory together. No weights are read.

        Raises:
            ModelError: one of them does not fit alone, or the model is stored in other bits.
            CheckpointError: there is no such model.
        """
        sizes = {scheme: self.size(place, scheme) for scheme in schemes}
        for scheme, size in sizes.items():
            if size > self.limit:
                raise ModelError(
                    f"as {scheme} this model takes {bytes_text(size)} of weights, and this page has "
                    f"{bytes_text(self.limit)}. Choose fewer bits or a smaller model, or run qllm-hf demo on a larger "
                    "machine."
                )
        return sum(sizes.values()) <= self.limit

    def size(self, place: str, scheme: str) -> int:
        """Bytes of the weights of a model under a scheme, from its config alone."""
        if (place, scheme) not in self._sizes:
            report = plan_report(model_on_meta(place), _described(place, scheme))
            if len(self._sizes) > 500:  # names come from visitors
                self._sizes.clear()
            self._sizes[place, scheme] = report.parameter_bytes_after
        return self._sizes[place, scheme]

    def take(self, place: str, scheme: str, keep: Sequence[str] = ()) -> Twin:
        """A model under a scheme, loaded if it is not there.

        Args:
            keep: schemes that are in use and stay.

        Raises:
            ModelError, CheckpointError: as `check`, and what loading raises.
        """
        with self._lock:
            if self._place != place:
                self._drop(lambda twin: True)
                self._place = place
            if scheme not in self._twins:
                self._make_room(self.size(place, scheme), keep)
                self._twins[scheme] = self._load(place, scheme)
            self._twins.move_to_end(scheme)
            return self._twins[scheme]

    def clear(self) -> None:
        """Let go of all models."""
        with self._lock:
            self._drop(lambda twin: True)

    def _make_room(self, size: int, keep: Sequence[str]) -> None:
        for scheme in [name for name in self._twins if name not in keep]:
            if self.nbytes + size <= self.limit:
                return
            self._drop(lambda twin, wanted=scheme: twin.scheme == wanted)  # type: ignore[misc]

    def _drop(self, leaves: Callable[[Twin], bool]) -> None:
        gone = [scheme for scheme, twin in self._twins.items() if leaves(twin)]
        for scheme in gone:
            del self._twins[scheme]
        if gone:
            gc.collect()  # modules and their hooks know each other

    def _load(self, place: str, scheme: str) -> Twin:
        model = load_model(place, _config(place, scheme), device_map=self.device)
        return Twin(place, scheme, model, load_tokenizer(place), parameter_bytes(model))


def stored_scheme(place: str) -> str:
    """The scheme that a checkpoint is stored in, "" for a float model.

    Raises:
        CheckpointError, ModelError: it cannot be loaded.
    """
    stored = stored_config(place)
    return "" if stored is None else str(stored.scheme)


def _config(place: str, scheme: str) -> QllmConfig | None:
    """What a checkpoint has to be given so that it runs under a scheme."""
    wanted, stored = Scheme.parse(scheme), stored_config(place)
    if stored is None:
        return None if wanted == Scheme() else QllmConfig.from_scheme(scheme)
    if str(stored.scheme) == scheme:
        return None
    weights = Scheme(w=stored.scheme.w, w_group_size=stored.scheme.w_group_size)
    if (wanted.w, wanted.w_group_size) != (weights.w, weights.w_group_size):
        raise ModelError(
            f"this model is stored as {stored.scheme}, and its float weights are not here. Compare it with the same "
            f"weights under other A and KV bits, such as {weights}KV4."
        )
    return QllmConfig(a=wanted.a, kv=wanted.kv, kv_group_size=wanted.kv_group_size)


def _described(place: str, scheme: str) -> QllmConfig:
    """The whole config of a model under a scheme, for counting bytes."""
    _config(place, scheme)
    stored = stored_config(place)
    return stored if stored is not None else QllmConfig.from_scheme(scheme)
