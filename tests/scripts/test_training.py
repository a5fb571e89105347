"""The training command: the same seed gives the same weights, to the last bit."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_reference_model.py"
# The command as it is, for one seed after another, except that it asks fewer questions: to ask them all takes longer
# than the steps.
FEW_QUESTIONS = """
import runpy, sys
from pathlib import Path
script, folder, *seeds = sys.argv[1:]
sys.path.insert(0, str(Path(script).parent))
from reference_model import check
check.ITEMS = 2
for seed in seeds:
    sys.argv = [script, "-o", str(Path(folder) / seed), "--seed", seed, "--stop", "1"]
    runpy.run_path(script, run_name="__main__")
"""


def train(folder: Path, *seeds: int) -> list[str]:
    """The fingerprints of the weights after one step from each seed, in a process of their own."""
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "1"}  # compiling would take most of the time
    command = [sys.executable, "-c", FEW_QUESTIONS, str(SCRIPT), str(folder), *map(str, seeds)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return re.findall(r"stopped; weights ([0-9a-f]{16})", done.stdout)


@pytest.mark.slow
@pytest.mark.longest
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_same_seed_same_weights(tmp_path):
    (first,), (again, other) = train(tmp_path, 0), train(tmp_path / "again", 1, 0)[::-1]
    assert first == again != other
    with (tmp_path / "0" / "training_log.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {"training/short", "training/lines", "stories", "calibration", "lines_256"} <= {row["task"] for row in rows}
    assert all(float(row["loss"]) > 0 for row in rows)
