"""Memory and time of calibrating a checkpoint of 1.1B parameters block by block, and of going on after a kill.

    python benchmarks/calibration.py [--method gptq] [--samples 8] [--seqlen 512] [--keep FOLDER]

The checkpoint is the one of `loading.py` (random weights in bfloat16, the shape of TinyLlama-1.1B); the tokens are
random. Each run is a process of its own that samples its anonymous resident memory. One run is killed (SIGKILL)
when half of its blocks are done and started again; what it saves must equal, bit for bit, what the undisturbed run
saves. The limit: packed model + one block in float32, and 25 % on top.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from loading import MB, SHAPE, Peak, make_checkpoint
from machine import write_results

SCHEME = "W4"


def run(folder: Path, out: Path, method: str, samples: int, seqlen: int) -> dict[str, float]:
    """Calibrate and save; MB and seconds."""
    from qllm_hf.config import QllmConfig
    from qllm_hf.loading import save_model
    from qllm_hf.methods.calibration import Calibration
    from qllm_hf.streamed import quantize_streamed, work_folder

    ids = torch.randint(3, SHAPE["vocab_size"], (samples, seqlen), generator=torch.Generator().manual_seed(0))
    text = Calibration(ids, "random tokens")
    config = QllmConfig.from_scheme(SCHEME, method=method, calibration=text)
    with Peak() as memory:
        start = time.perf_counter()
        model, work = quantize_streamed(str(folder), config, text, work_folder(out))
        calibrated = time.perf_counter() - start
        during = memory.peak
        save_model(model, None, out)
        work.remove()
        seconds = time.perf_counter() - start
    size = sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values())
    return {
        "baseline_mb": memory.baseline,
        "peak_calibrating_mb": during - memory.baseline,
        "peak_mb": memory.peak - memory.baseline,
        "packed_model_mb": size / MB,
        "seconds_calibrating": calibrated,
        "seconds": seconds,
    }


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """`run` in a process of its own."""
    return subprocess.Popen([sys.executable, __file__, "--run", *arguments], stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process printed last."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def kill_when_half_done(process: subprocess.Popen[str], progress: Path, layers: int) -> tuple[int, float]:
    """Blocks that were done, and seconds that had passed, when the process was killed."""
    begin = time.perf_counter()
    while True:
        time.sleep(0.2)
        if process.poll() is not None:
            raise RuntimeError("the run ended before it could be killed")
        done = json.loads(progress.read_text())["done"] if progress.exists() else 0
        if done >= layers // 2:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return done, time.perf_counter() - begin


def digest(folder: Path) -> str:
    """A hash of all weights that were saved."""
    found = hashlib.blake2b()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="fewer than the real model has")
    parser.add_argument("--keep", type=Path, help="folder for the float checkpoint, to use it again")
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        folder, out, method, samples, seqlen = given.run
        print(json.dumps(run(Path(folder), Path(out), method, int(samples), int(seqlen))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary) / "float"
        if not (folder / "config.json").exists():
            make_checkpoint(folder, {**SHAPE, "num_hidden_layers": given.layers}, "500MB")
        rest = [given.method, str(given.samples), str(given.seqlen)]
        whole, killed = Path(temporary) / "whole", Path(temporary) / "killed"
        block = 4 * _block_elements() / MB
        undisturbed = result_of(start([str(folder), str(whole), *rest]))
        first = start([str(folder), str(killed), *rest])
        done, before = kill_when_half_done(
            first, Path(temporary) / ".killed.calibration" / "progress.json", given.layers
        )
        resumed = result_of(start([str(folder), str(killed), *rest]))
        same = digest(whole) == digest(killed)
        for name, result in (("undisturbed", undisturbed), ("resumed", resumed)):
            limit = 1.25 * (result["packed_model_mb"] + block)
            rows.append(
                {
                    "run": name,
                    "layers": given.layers,
                    "scheme": SCHEME,
                    "method": given.method,
                    "samples": given.samples,
                    "seqlen": given.seqlen,
                    **{key: round(value, 1) for key, value in result.items()},
                    "float32_block_mb": round(block, 1),
                    "limit_mb": round(limit, 1),
                    "blocks_before_kill": done if name == "resumed" else 0,
                    "seconds_before_kill": round(before, 1) if name == "resumed" else 0,
                    "same_files": same,
                }
            )
            print(rows[-1])
        if not same:
            raise SystemExit("the resumed run saved other weights than the undisturbed one")
    print(write_results("calibration", rows))


def _block_elements() -> int:
    hidden, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    kv = hidden * SHAPE["num_key_value_heads"] // SHAPE["num_attention_heads"]
    return 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner + 2 * hidden


if __name__ == "__main__":
    main()
