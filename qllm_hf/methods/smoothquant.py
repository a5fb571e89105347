"""SmoothQuant: outliers of activations are moved into the weights, where they hurt less.

s = max|x|^alpha / max|w|^(1 - alpha) for each channel, over all layers that read it; alpha = 0.5 as published, or for
each group of layers the one whose quantized outputs are closest to the float ones on a sample of tokens.

Source: arXiv 2211.10438 section 4 (equation 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..method import AUTO, SmoothQuantOptions
from .objective import Reader
from .scales import LARGEST_SCALE, Pair

_SMALLEST = 1e-5


def smoothing_scale(pair: Pair, readers: list[Reader], options: SmoothQuantOptions) -> Tensor:
    """The scale of the producer's channels [n]."""
    if options.alpha != AUTO:
        return _scale(pair, readers, float(options.alpha))
    tried = [_scale(pair, readers, alpha) for alpha in options.grid]
    losses = [sum(reader.loss(pair.spread(scale)) for reader in readers) for scale in tried]
    return tried[min(range(len(tried)), key=losses.__getitem__)]


def _scale(pair: Pair, readers: list[Reader], alpha: float) -> Tensor:
    inputs = torch.stack([reader.moments.peak for reader in readers]).amax(0)
    weights = torch.stack([reader.matrix.abs().amax(0) for reader in readers]).amax(0)
    # channels that share a scale (grouped query attention) share their extremes
    inputs, weights = pair.gathered(inputs).clamp(min=_SMALLEST), pair.gathered(weights).clamp(min=_SMALLEST)
    return (inputs.pow(alpha) / weights.pow(1 - alpha)).clamp(_SMALLEST, LARGEST_SCALE)
