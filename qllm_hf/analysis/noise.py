"""What rounding to few bits would change in a tensor: signal and noise, summed up over a stream."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..scheme import Spec
from ..uniform import fake_quantize
from .streaming import PIECE

BITS = (2, 3, 4, 6, 8)
"""What is tried."""


class Noise:
    """Energies, channel by channel, of the rows [.., C] that were added and of what quantization changes in them.

    Args:
        specs: {bits: how rows are quantized}.

    Attributes:
        count: rows.
        signal: [C] in float64, the sum of x^2.
        noise: {bits: [C]}, the sum of (x' - x)^2.
    """

    def __init__(self, specs: Mapping[int, Spec], channels: int, device: torch.device | str = "cpu") -> None:
        self.specs = dict(specs)
        self.count = 0
        self.signal = torch.zeros(channels, dtype=torch.float64, device=device)
        self.noise = {bits: torch.zeros_like(self.signal) for bits in specs}

    def add(self, x: Tensor) -> None:
        """Take in x [.., C]; groups are along the last dimension."""
        rows = x.detach().reshape(-1, x.shape[-1])
        self.count += len(rows)
        for piece in rows.split(max(1, PIECE // max(1, x.shape[-1]))):
            self.signal += _energy(piece.float())
            for bits, spec in self.specs.items():
                self.noise[bits] += _energy(fake_quantize(piece, spec).float() - piece.float())

    def sqnr(self, readers: Tensor | None = None) -> dict[int, float | None]:
        """{bits: signal to quantization noise in dB}; None where nothing is lost.

        Of the tensor itself, or with `readers` [C] of its product with another one, of which these are the energies of
        the channels that meet. For the input of a layer, that is the layer's weight: a channel that is large and meets
        small weights then counts for as little as it does in the output. Channels are taken to be independent: noise
        is then right to 1.5 dB, while a signal may be stronger by 6 dB (queries of stories260K) or weaker by 2.
        """
        signal = self.signal if readers is None else self.signal * readers.to(self.signal)
        found = {}
        for bits, noise in self.noise.items():
            noise = noise if readers is None else noise * readers.to(noise)
            found[bits] = _decibels(float(signal.sum()), float(noise.sum()))
        return found

    def logit_noise(self, length: int, scaling: float) -> dict[int, float | None]:
        """{bits: standard deviation, in nats, of what attention logits change by when keys are quantized}.

        A logit is scaling * q k, over `length` elements. The queries are not seen here and taken to be as long as the
        keys, which the models that were looked at confirm to a factor of 2.
        """
        elements = max(self.count, 1) * len(self.signal)
        key = math.sqrt(float(self.signal.sum()) / elements)
        return {
            bits: scaling * math.sqrt(length) * key * math.sqrt(float(noise.sum()) / elements)
            for bits, noise in self.noise.items()
        }


def _energy(x: Tensor) -> Tensor:
    return x.square().sum(0, dtype=torch.float64)


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
