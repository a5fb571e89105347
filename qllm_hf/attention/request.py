"""What attention over packed rows is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..kv_rows import RowFormat
from ..rotation import rotate


@dataclass(frozen=True)
class KvRows:
    """Keys or values of a layer as they are cached: rows int16 [B, H, T, R] and what they mean.

    Attributes:
        used: int64 [] on their device, how many of the T tokens there are. Behind them is room, which a mask hides too;
            None where there is no room.
    """

    rows: Tensor
    format: RowFormat
    used: Tensor | None = None

    @property
    def tokens(self) -> int:
        return self.rows.shape[-2]

    def decode(self) -> Tensor:
        """The vectors [B, H, T, D]."""
        return self.format.decode(self.rows)

    def as_stored(self) -> KvRows:
        """The same rows, for the vectors that were quantized: those of keys that are rotated stay so."""
        return KvRows(self.rows, self.format.as_stored(), self.used) if self.format.rotated else self

    def part(self, start: int, stop: int) -> KvRows:
        """The tokens start .. stop - 1."""
        return KvRows(self.rows[:, :, start:stop], self.format)


@dataclass(frozen=True)
class Request:
    """softmax(cap(scale q k') + mask) v for queries [B, Hq, Tq, D], with Hq a multiple of the heads of keys.

    Attributes:
        query: [B, Hq, Tq, D] in the dtype of the keys. Queries head h reads key head h // (Hq // H).
        keys: packed [B, H, T, D].
        values: packed [B, H, T, Dv].
        mask: added to scores, or True where a key is seen; it broadcasts to [B, Hq, Tq, T].
        causal: query number t sees the keys 0 .. t only.
        scale: of the scores.
        softcap: scores become softcap * tanh(scores / softcap) before the mask.
        sinks: [Hq], one more score per head that takes its share of the softmax and has no value.
    """

    query: Tensor
    keys: KvRows
    values: KvRows
    mask: Tensor | None
    causal: bool
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None

    def as_stored(self) -> Request:
        """The same attention with keys as they are stored: where they are rotated, queries are as well."""
        if not self.keys.format.rotated:
            return self
        return replace(self, query=rotate(self.query), keys=self.keys.as_stored())

    @property
    def used(self) -> Tensor | None:
        """How many of the tokens have to be read, int64 [] on their device; None for all."""
        return None if self.mask is None else self.keys.used

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.query.shape[1] // self.keys.rows.shape[1]
