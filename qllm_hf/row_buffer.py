"""Rows that grow at their end in place: memory for more tokens than there are, and who may write into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .pages import on_large_pages

# Memory grows by half of itself, in whole steps of so many tokens.
STEP = 64


@dataclass
class RowBuffer:
    """Memory for rows [B, H, capacity, R], of which the first `used` tokens have been handed out.

    Several tensors may look into one buffer: the rows before a crop, those of a copied layer. Only the one that ends
    where `used` does may be continued in place; a shorter one would overwrite what another still shows.
    """

    memory: Tensor
    used: int

    def ends_with(self, rows: Tensor) -> bool:
        """Whether `rows` is the newest view of this memory, and may be continued in it."""
        memory = self.memory
        return (
            rows.dim() == 4
            and rows.shape[-2] == self.used
            and rows.device == memory.device
            and rows.data_ptr() == memory.data_ptr()
            and (*rows.shape[:2], rows.shape[3]) == (*memory.shape[:2], memory.shape[3])
            and rows.stride() == memory.stride()
            and (torch.is_inference_mode_enabled() or not memory.is_inference())
        )


def append(
    rows: Tensor, shape: tuple[int, ...], buffer: RowBuffer | None, write: Callable[[Tensor], object]
) -> tuple[Tensor, RowBuffer]:
    """Rows [B, H, T + t, R] of `rows` [B, H, T, R] (or empty) and of `shape` [B, H, t, R] new ones, and their buffer.

    `write` is given the place of the new ones. Nothing else is written while the buffer has room and `rows` is its
    newest view, so that T steps of one token cost T writes and not T^2 / 2 copies. The contents are those of torch.cat.
    """
    batch, heads, new, words = shape
    length = rows.shape[-2] if rows.dim() == 4 else 0
    total = length + new
    continued = buffer is not None and length > 0 and buffer.ends_with(rows)
    if buffer is None or not continued or total > buffer.memory.shape[-2]:
        # what never grew here may never grow again (beams are reordered at each step), so it gets no room to spare
        wanted = max(total, buffer.memory.shape[-2] * 3 // 2) if buffer is not None and continued else total
        memory = on_large_pages(rows.new_empty(batch, heads, -(-wanted // STEP) * STEP, words))
        if length:
            memory[:, :, :length] = rows
        buffer = RowBuffer(memory, length)
    write(buffer.memory.narrow(2, length, new))
    buffer.used = total
    return buffer.memory.narrow(2, 0, total), buffer


def compact(rows: Tensor | None) -> Tensor | None:
    """The rows without spare memory behind them, which a pickle would write out with them."""
    if rows is None or rows.untyped_storage().nbytes() == rows.numel() * rows.element_size():
        return rows
    return rows.clone(memory_format=torch.contiguous_format)
