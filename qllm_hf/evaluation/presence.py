"""Which processes of a run are still there: each says so every few seconds, in the store through which they met.

A process that is killed closes its connections, and the others notice at once; but the error then names an address and
a port. And a machine that is switched off closes nothing. What each process last said tells which one it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

BEAT: Final = 2.0
"""Seconds between two signs of life."""
SILENCE: Final = 120.0
"""Seconds without one after which a process counts as gone."""


class Presence:
    """Signs of life of this process, and of the others.

    Args:
        store: of torch.distributed, with a connection of its own: another thread writes to it.
        rank, size: of this process, and how many there are.
        beat, silence: seconds, as above.
    """

    def __init__(self, store: Any, rank: int, size: int, beat: float = BEAT, silence: float = SILENCE) -> None:
        self._store, self._rank, self._size, self._beat, self._silence = store, rank, size, beat, silence
        self._seen: dict[int, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="qllm-presence", daemon=True)
        self._thread.start()

    def silent(self) -> list[int]:
        """Processes that have said nothing for too long."""
        now = time.monotonic()
        late = []
        for rank in self._others():
            said = self._read(f"beat/{rank}")
            if rank not in self._seen or self._seen[rank][0] != said:
                self._seen[rank] = (said, now)
            elif now - self._seen[rank][1] > self._silence:
                late.append(rank)
        return late

    def roll_call(self) -> list[int]:
        """Processes that do not answer now that something went wrong; those that ask the same count as there."""
        self.note("noticed", "yes")
        before = {rank: self._read(f"beat/{rank}") for rank in self._others()}
        time.sleep(3 * self._beat)
        return [
            rank
            for rank, said in before.items()
            if self._read(f"beat/{rank}") == said and not self._read(f"noticed/{rank}")
        ]

    def note(self, what: str, text: str) -> None:
        """Leave something for the others to read."""
        with self._lock:
            self._store.set(f"qllm/{what}/{self._rank}", text)

    def notes(self, what: str) -> dict[int, str]:
        """{process: what it left}."""
        return {rank: text for rank in range(self._size) if (text := self._read(f"{what}/{rank}"))}

    def leave(self) -> None:
        """Say no more."""
        self._end.set()
        self._thread.join()

    def _others(self) -> Iterable[int]:
        return (rank for rank in range(self._size) if rank != self._rank)

    def _read(self, key: str) -> str:
        with self._lock:
            if not self._store.check([f"qllm/{key}"]):
                return ""
            return str(self._store.get(f"qllm/{key}").decode())

    def _go_on(self) -> None:
        count = 0
        while not self._end.is_set():
            count += 1
            try:
                self.note("beat", str(count))
            except RuntimeError:  # the store is gone, and with it whoever might read this
                return
            self._end.wait(self._beat)


def connect(host: str, port: int, rank: int, size: int) -> Presence:
    """The presence of this process, in the store at an address."""
    import torch.distributed

    dist: Any = torch.distributed
    return Presence(dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=60)), rank, size)
