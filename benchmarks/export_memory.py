"""Memory that an export takes beyond the libraries: a packed checkpoint of 1.1B parameters, tensor by tensor.

    python benchmarks/export_memory.py [--keep FOLDER]

The float checkpoint is that of loading.py; it is packed as W4 and exported in each format that is a folder. Each export
is a process of its own, in which a small one ran before. Writes results/export_memory.csv.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from loading import SHAPE, Peak, make_checkpoint
from machine import write_results
from offload import save_packed

from qllm_hf.export.run import FORMATS, export_checkpoint

SMALL = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    vocab_size=64,
)


def measure(small: str, packed: str, format: str) -> dict[str, Any]:
    """Anonymous memory of an export in this process, in MB (1e6 bytes) above what it had before."""
    with tempfile.TemporaryDirectory() as work:
        export_checkpoint(small, Path(work) / "small", format=format)  # everything is imported then
        with Peak() as exporting:
            done = export_checkpoint(packed, Path(work) / "large", format=format)
    return {
        "format": format,
        "bytes_packed": done.bytes_before,
        "bytes_exported": done.bytes_after,
        "peak_mb": round(exporting.peak - exporting.baseline, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder for the float checkpoint, to use it again")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*json.loads(given.measure))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folders = {"large": given.keep or work / "large", "small": work / "small"}
        for name, shape in (("large", SHAPE), ("small", SMALL)):
            if not (folders[name] / "config.json").exists():
                make_checkpoint(folders[name], shape, "500MB")
            save_packed(folders[name], "W4", work / f"{name}-W4")
        for format in FORMATS:
            words = [str(work / "small-W4"), str(work / "large-W4"), format]
            command = [sys.executable, __file__, "--measure", json.dumps(words)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    print(write_results("export_memory", rows))


if __name__ == "__main__":
    main()
