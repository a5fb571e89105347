"""Statistics of a tensor that comes in pieces, or of many: one pass, constant memory, the same as in two passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CalibrationError

PIECE = 2**20
"""Elements that are looked at in one go, in float64."""
OUTLIER = 6.0
"""Standard deviations from the mean beyond which an element is an outlier."""
_DROPPED = 17
_BINS = 2**15
_NEGATIVE = _BINS // 2


@dataclass(frozen=True)
class Central:
    """Number, mean and central moments of some numbers: m2, m3 and m4 are the sums of (x - mean)^2, ^3 and ^4.

    Two of them merge into that of all their numbers, without cancellation however far the mean is from 0.

    Source: P. Pebay, Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical
    moments, Sandia report SAND2008-6212, equations 2.1 and 3.1.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0

    @classmethod
    def of(cls, x: Tensor) -> Central:
        """Those of the elements of x, computed in float64."""
        if not x.numel():
            return cls()
        x = x.double()
        mean = x.mean()
        deviation = x - mean
        rest = deviation.mean()  # of the mean's own rounding, which the higher moments would feel
        deviation -= rest
        square = deviation.square()
        return cls(
            x.numel(),
            float(mean + rest),
            float(square.sum()),
            float((square * deviation).sum()),
            float(square.square().sum()),
        )

    def merged(self, other: Central) -> Central:
        """Those of the numbers of both."""
        if not self.count or not other.count:
            return self if self.count else other
        a, b = self.count, other.count
        n, d = a + b, other.mean - self.mean
        return Central(
            n,
            self.mean + d * b / n,
            self.m2 + other.m2 + d**2 * a * b / n,
            self.m3 + other.m3 + d**3 * a * b * (a - b) / n**2 + 3 * d * (a * other.m2 - b * self.m2) / n,
            self.m4
            + other.m4
            + d**4 * a * b * (a * a - a * b + b * b) / n**3
            + 6 * d**2 * (a * a * other.m2 + b * b * self.m2) / n**2
            + 4 * d * (a * other.m3 - b * self.m3) / n,
        )


@dataclass(frozen=True)
class Summary:
    """What a stream of numbers looked like.

    Attributes:
        count: numbers seen.
        std: standard deviation, of the numbers themselves (divided by their count).
        absmax: the largest magnitude.
        kurtosis: Pearson's, m4 / (m2 / n)^2 / n: 3 for a normal distribution, 1.8 for a uniform one, more with
            outliers. None for a constant.
        excess_kurtosis: Fisher's, which is Pearson's less 3.
        outlier_ratio: share of the numbers further than 6 standard deviations from the mean (normal: 2e-9). From a
            histogram: the limit is known to 1.6 % of its magnitude, and what lies in its bin is interpolated.
        channels: length of the last dimension.
        largest_channel: the channel with the largest magnitude.
        channel_spread: the largest magnitude of a channel divided by that of the median channel; None where the median
            channel is all zero.
    """

    count: int
    mean: float
    std: float
    low: float
    high: float
    absmax: float
    kurtosis: float | None
    excess_kurtosis: float | None
    outlier_ratio: float
    channels: int
    largest_channel: int
    channel_spread: float | None


class Stream:
    """Statistics of all tensors [.., C] that were added. Two streams of one width merge.

    The histogram counts the first 15 bits of each number as a float32, which are its sign, exponent and 6 bits of the
    mantissa: 64 bins for each power of two, over all that a float32 can be.

    Attributes:
        name: what the numbers are, for messages.
        channel_low, channel_high: [C], the range of each channel.
    """

    def __init__(self, name: str, channels: int, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.central = Central()
        self.channel_low = torch.full((channels,), torch.inf, device=device)
        self.channel_high = torch.full((channels,), -torch.inf, device=device)
        self._bins = torch.zeros(_BINS, dtype=torch.int64, device=device)

    @property
    def count(self) -> int:
        """Numbers seen."""
        return self.central.count

    def add(self, x: Tensor) -> None:
        """Take in x [.., C].

        Raises:
            CalibrationError: x holds NaN or infinite values.
        """
        rows = x.detach().reshape(-1, x.shape[-1])
        for piece in rows.split(max(1, PIECE // max(1, x.shape[-1]))):
            if piece.numel():
                self._add(piece)

    def _add(self, rows: Tensor) -> None:
        if not bool(torch.isfinite(rows).all()):
            kind = "NaN" if bool(torch.isnan(rows).any()) else "infinite values"
            raise CalibrationError(f"{self.name} holds {kind}: nothing can be said of it. Is the checkpoint damaged?")
        single = rows.float()
        self.central = self.central.merged(Central.of(rows))
        self.channel_low = torch.minimum(self.channel_low, single.amin(0))
        self.channel_high = torch.maximum(self.channel_high, single.amax(0))
        self._bins += torch.bincount(_bin_of(single).flatten(), minlength=_BINS)

    def merge(self, other: Stream) -> None:
        """Take in all that another stream of the same width has seen."""
        self.central = self.central.merged(other.central)
        self.channel_low = torch.minimum(self.channel_low, other.channel_low)
        self.channel_high = torch.maximum(self.channel_high, other.channel_high)
        self._bins += other._bins

    @property
    def channel_absmax(self) -> Tensor:
        """[C], the largest magnitude of each channel."""
        return torch.maximum(self.channel_low.abs(), self.channel_high.abs())

    def share_beyond(self, deviations: float) -> float:
        """Share of the numbers further than so many standard deviations from the mean, from the histogram."""
        if not self.count:
            return 0.0
        distance = deviations * (self.central.m2 / self.count) ** 0.5
        return (self._above(self.central.mean + distance) + self._below(self.central.mean - distance)) / self.count

    def _above(self, limit: float) -> float:
        if limit >= float(self.channel_high.max()):
            return 0.0
        return self._longer(limit, 0) if limit >= 0 else self.count - self._longer(-limit, _NEGATIVE)

    def _below(self, limit: float) -> float:
        if limit <= float(self.channel_low.min()):
            return 0.0
        return self._longer(-limit, _NEGATIVE) if limit <= 0 else self.count - self._longer(limit, 0)

    def _longer(self, magnitude: float, side: int) -> float:
        """How many numbers on one side of 0 are of more than a magnitude."""
        bins = self._bins[side : side + _NEGATIVE]
        at = int(_bin_of(torch.tensor(magnitude, dtype=torch.float32)))
        start, end = _edge(at), _edge(at + 1)
        inside = (end - magnitude) / (end - start) * float(bins[at])
        return float(bins[at + 1 :].sum()) + inside

    def summary(self) -> Summary:
        """What was seen. There must have been something."""
        central, absmax = self.central, self.channel_absmax
        low, high = float(self.channel_low.min()), float(self.channel_high.max())
        # a constant's deviations are what the rounding of its mean left
        variance = 0.0 if low == high else central.m2 / central.count
        kurtosis = central.m4 / central.count / variance**2 if variance**2 > 0 else None
        median = float(absmax.double().quantile(0.5))
        return Summary(
            count=central.count,
            mean=central.mean,
            std=variance**0.5,
            low=low,
            high=high,
            absmax=float(absmax.max()),
            kurtosis=kurtosis,
            excess_kurtosis=None if kurtosis is None else kurtosis - 3,
            outlier_ratio=self.share_beyond(OUTLIER) if variance else 0.0,
            channels=len(absmax),
            largest_channel=int(absmax.argmax()),
            channel_spread=float(absmax.max()) / median if median else None,
        )


def _bin_of(x: Tensor) -> Tensor:
    return (x.view(torch.int32) >> _DROPPED) & (_BINS - 1)


def _edge(index: int) -> float:
    """The least magnitude of a bin."""
    return float(torch.tensor(index << _DROPPED, dtype=torch.int32).view(torch.float32))
