"""AWQ: the scale of each channel, found by trying exponents of its mean magnitude.

A channel whose inputs are large matters more, so its weights are multiplied by s > 1 before they are rounded and
its inputs divided by s. s = mean|x|^r, normalised so that the largest and the smallest lie evenly around 1; r is the
point of a grid at which the outputs of all layers that read the channels move least.

Source: arXiv 2306.00978 section 3; the grid and its normalisation as in the authors' code. What is compared are the
outputs of the layers themselves, over all calibration tokens (`objective`), not of the module around them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .objective import Reader
from .scales import LARGEST_SCALE, SMALLEST_SCALE, Pair


def search_scale(pair: Pair, readers: list[Reader], steps: int) -> Tensor:
    """The scale of the producer's channels [n] that moves the readers' outputs least; all ones if none helps."""
    magnitude = sum(reader.moments.magnitude for reader in readers)
    count = max(sum(reader.moments.count for reader in readers), 1)
    assert isinstance(magnitude, Tensor)
    mean = pair.gathered(magnitude / count)
    best, least = torch.ones_like(mean), sum(reader.loss() for reader in readers)
    for step in range(1, steps):
        scale = mean.pow(step / steps).clamp(min=SMALLEST_SCALE)
        scale = (scale / (scale.max() * scale.min()).sqrt()).clamp(SMALLEST_SCALE, LARGEST_SCALE)
        spread = pair.spread(scale)
        loss = sum(reader.loss(spread) for reader in readers)
        if loss < least:
            best, least = scale, loss
    return best
