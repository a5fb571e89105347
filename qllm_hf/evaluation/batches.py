"""Which questions go through the model together: a plan made from lengths alone, the same on every machine and run.

What a batch holds changes the last bits of its results. A plan that does not depend on how many processes there are,
or on what was finished before, is what makes records equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], tokens: int, rows: int | None = None) -> list[list[int]]:
    """Indices of items, the longest first, in groups of at most `tokens` tokens with padding, or of `rows` items.

    Equal lengths stay in their order. An item longer than `tokens` is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches = []
    while order:
        longest = max(1, lengths[order[0]])
        size = rows or max(1, tokens // longest)
        batches.append(order[:size])
        order = order[size:]
    return batches


def tokens_to_read(vocabulary: int, on_gpu: bool) -> int:
    """Tokens of a batch that is only read: what is fastest, if its logits in float32 take no more than a gigabyte.

    2,048 tokens keep a CPU busy, and more of them leave its caches (measured: benchmarks/evaluation.py); a GPU takes
    16 times as many, and 4 GB.
    """
    most, memory = (32768, 4 << 30) if on_gpu else (2048, 1 << 30)
    return max(256, min(most, memory // (4 * max(1, vocabulary))))


def tokens_to_write(cache_bytes: int, memory: int = 2 << 30) -> int:
    """Tokens of a batch of texts that are written, prompts included: as many as have a cache of `memory` bytes.

    Each step reads all weights once, whatever the batch holds, and so a large batch is fast; but each step also reads
    the cache of every row. Beyond 16,384 tokens long prompts took twice the time (benchmarks/evaluation.py, gsm8k).

    Args:
        cache_bytes: of one token in all layers.
        memory: for the whole cache.
    """
    return max(2048, min(16384, memory // max(1, cache_bytes)))
