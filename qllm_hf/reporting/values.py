"""The values that a report is made of. All sizes are bytes; `elements` counts float weights, not packed words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Origin = Literal["measured", "planned", "stored"]
"""From the tensors of a loaded model, predicted for a float model, or of a packed checkpoint that was not loaded."""


@dataclass(frozen=True)
class QuantizedGroup:
    """Weights that are quantized in the same way.

    Attributes:
        kind: "linear", "conv1d", "experts", or "head" for an output head.
        bits, group_size, symmetric: of the weights; group_size -1 is one group per row, 0 one per matrix.
        activation_bits: of their inputs; 16 is floating point.
        weights: how many tensors.
        bytes_before: what they take in floating point; 0 for a head that was tied to the embedding, which is kept.
        bytes_after: packed words, scales and zero points.
    """

    kind: str
    bits: int
    group_size: int
    symmetric: bool
    activation_bits: int
    weights: int
    elements: int
    bytes_before: int
    bytes_after: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales and zero points included."""
        return 8 * self.bytes_after / self.elements


@dataclass(frozen=True)
class KeptGroup:
    """Tensors that stay in floating point for the same reason; `pattern` has * for layer numbers."""

    pattern: str
    tensors: int
    elements: int
    bytes: int
    reason: str


@dataclass(frozen=True)
class KvLayers:
    """Layers whose keys and values are cached alike.

    Attributes:
        layers: how many.
        heads, key_dim, value_dim: of what is cached (latents, where attention is multi-head latent).
        window: tokens that a sliding-window layer keeps at most, or None where all are kept.
        storage: "packed", "simulated" (quantized, but stored as floats) or "float".
        bytes_per_token_before, bytes_per_token_after: of these layers together.
    """

    layers: int
    heads: int
    key_dim: int
    value_dim: int
    window: int | None
    storage: str
    bytes_per_token_before: int
    bytes_per_token_after: int


@dataclass(frozen=True)
class KvReport:
    """What one token of one sequence takes in the KV cache.

    Attributes:
        bits: 2 to 8, or 16 for floating point.
        keys_only: only the first of the two cached tensors is quantized.
        groups: layers that are alike.
        layers_without: layers that cache no keys and values.
        unknown: why nothing could be measured; empty if it could.
    """

    bits: int
    keys_only: bool
    groups: tuple[KvLayers, ...]
    layers_without: int
    unknown: str = ""

    @property
    def bytes_per_token_before(self) -> int:
        """Keys and values of all layers in floating point."""
        return sum(group.bytes_per_token_before for group in self.groups)

    @property
    def bytes_per_token_after(self) -> int:
        """Keys and values of all layers as they are stored."""
        return sum(group.bytes_per_token_after for group in self.groups)


@dataclass(frozen=True)
class Backend:
    """Which implementation runs a linear layer, and (name, reason) of each that was passed over."""

    device: str
    dtype: str
    weight: str
    activation: str
    implementation: str
    summary: str
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Report:
    """What quantization did, or would do, to a model. `str(report)` is a page of text, `to_dict()` goes into JSON.

    Attributes:
        origin: where the numbers are from.
        dtype: of the weights that stay in floating point.
        elements: of all parameters and stored buffers, tied ones counted once.
        parameter_bytes_before, parameter_bytes_after: the same in bytes, in floating point and as they are.
        linear_bytes_before, linear_bytes_after: of the linear weights, the output head not counted.
        bits_per_weight: stored bits per quantized weight, with scales and zero points; None if none is quantized.
        bits_per_weight_expected: the same, from the format alone.
        linear_coverage: quantized share of the linear weights, 0 to 1; the output head does not count.
        parameter_coverage: quantized share of all parameters, 0 to 1.
        quantized, kept: together they are all parameters, a head that was tied to a kept embedding twice.
        notes: what one may not expect of this family of models.
    """

    origin: Origin
    architecture: str
    model_type: str
    scheme: str
    dtype: str
    elements: int
    parameter_bytes_before: int
    parameter_bytes_after: int
    linear_bytes_before: int
    linear_bytes_after: int
    bits_per_weight: float | None
    bits_per_weight_expected: float | None
    linear_coverage: float
    parameter_coverage: float
    quantized: tuple[QuantizedGroup, ...]
    kept: tuple[KeptGroup, ...]
    kv: KvReport
    backends: tuple[Backend, ...]
    notes: tuple[str, ...]

    @property
    def kv_bytes_per_token_before(self) -> int:
        """Bytes that one token takes in the KV cache in floating point."""
        return self.kv.bytes_per_token_before

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in the KV cache."""
        return self.kv.bytes_per_token_after

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, numbers and strings."""
        kv = {
            "kv_bytes_per_token_before": None if self.kv.unknown else self.kv_bytes_per_token_before,
            "kv_bytes_per_token": None if self.kv.unknown else self.kv_bytes_per_token,
        }
        values: dict[str, Any] = _plain({**asdict(self), **kv})
        return values

    def __str__(self) -> str:
        from .text import render

        return render(self)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
