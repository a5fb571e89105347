"""The training command: the same seed gives the same weights, to the last bit."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_reference_model.py"
# The command as it is, except that it asks fewer questions: to ask them all takes longer than the step, three times.
FEW_QUESTIONS = """
import runpy, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from reference_model import check
check.ITEMS = 4
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def train(folder: Path, seed: int) -> str:
    """The fingerprint of the weights after one step."""
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "1"}  # compiling would take most of the time
    command = [sys.executable, "-c", FEW_QUESTIONS, str(SCRIPT), "-o", str(folder), "--seed", str(seed), "--stop", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return re.search(r"stopped; weights ([0-9a-f]{16})", done.stdout)[1]


@pytest.mark.slow
def test_same_seed_same_weights(tmp_path):
    weights = [train(tmp_path / str(run), seed) for run, seed in enumerate((0, 0, 1))]
    assert weights[0] == weights[1] != weights[2]
    with (tmp_path / "0" / "training_log.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {"training/short", "training/lines", "stories", "calibration", "lines_256"} <= {row["task"] for row in rows}
    assert all(float(row["loss"]) > 0 for row in rows)
