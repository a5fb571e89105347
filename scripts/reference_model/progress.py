"""How far a training run is: its log, what it prints, and the file from which it goes on."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import torch

from .check import Checked
from .optimizer import Optimizer

COLUMNS = ("step", "tokens", "minutes", "task", "loss", "right")


class Progress:
    """Counts steps, tokens and minutes of a run that writes to `folder`."""

    def __init__(self, folder: Path) -> None:
        self.log, self.state = folder / "training_log.csv", folder / "state.pt"
        self.step = self.tokens = 0
        self.before, self.begin = 0.0, time.perf_counter()

    @property
    def minutes(self) -> float:
        """Time spent on training, that of earlier parts of the run included."""
        return self.before + (time.perf_counter() - self.begin) / 60

    def write(self, losses: dict[str, float], checked: dict[str, Checked]) -> None:
        """One line per task in the log; `losses` of the last batches come first."""
        rows = [(f"training/{name}", loss, None) for name, loss in losses.items()]
        rows += [(name, score.loss, score.right) for name, score in checked.items()]
        is_new = not self.log.exists() or self.step == 0
        with self.log.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(COLUMNS)
            for name, loss, right in rows:
                part = "" if right is None else f"{right:.4f}"
                writer.writerow([self.step, self.tokens, f"{self.minutes:.2f}", name, f"{loss:.4f}", part])
        print(f"step {self.step}, {self.tokens / 1e6:.1f}M tokens, {self.minutes:.1f} minutes")
        print(
            "  "
            + ", ".join(
                f"{name} {loss:.3f}" + (f" ({right:.2f})" if right is not None else "") for name, loss, right in rows
            ),
            flush=True,
        )

    def save(self, optimizer: Optimizer) -> None:
        """Keeps all that is needed to go on from here."""
        partial = self.state.with_suffix(".partial")
        torch.save(
            {"optimizer": optimizer.state_dict(), "counts": (self.step, self.tokens, self.minutes)},
            partial,
        )
        partial.replace(self.state)

    def restore(self, optimizer: Optimizer) -> None:
        """Goes on from the last save; the log loses what was written after it."""
        saved = torch.load(self.state, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        self.step, self.tokens, self.before = saved["counts"]
        with self.log.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row[0] == COLUMNS[0] or int(row[0]) <= self.step]
        with self.log.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
