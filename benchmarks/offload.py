"""Memory of a model of which only a part fits: a checkpoint of 1.1B parameters, the rest of it on disk.

    python benchmarks/offload.py [--keep FOLDER] [--small]

The checkpoint is that of loading.py, 2.2 GB in bfloat16. It is loaded as W4 and W8 with `device_map="auto"`, on the fly
from the float files and from files that were saved packed, with room in memory for all of it, for half, and for a
quarter. Each row is a process of its own. Anonymous memory is what it allocated; resident memory also counts the pages
of files that it read, which the system may drop at any time. Logits are compared with those of the whole model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from loading import MB, SHAPE, Peak, make_checkpoint
from machine import write_results
from transformers import AutoModelForCausalLM, LlamaConfig

SMALL = {**SHAPE, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_hidden_layers": 8}
ROOM = (None, 0.5, 0.25)  # of the packed model; None: all of it, without a device map
TOKENS = 32


def measure(folder: str, scheme: str, room: float | None, packed_bytes: int, logits: str) -> dict[str, Any]:
    """Load and score in this process. `logits` is the file of those of the whole model, made where it is missing."""
    import qllm_hf
    from qllm_hf.reporting.tensors import parameter_bytes

    tiny = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    qllm_hf.quantize_(AutoModelForCausalLM.from_config(LlamaConfig(**tiny)), "W4")  # import everything first
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if not (Path(folder) / "config.json").read_text().count('"qllm"'):
        options["quantization_config"] = qllm_hf.QllmConfig.from_scheme(scheme)
    with tempfile.TemporaryDirectory() as offload:
        if room is not None:
            options |= {
                "device_map": "auto",
                "max_memory": {"cpu": int(room * packed_bytes)},
                "offload_folder": offload,
            }
        resident = status_mb("VmRSS")
        with Peak() as loading:
            model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        ids = torch.arange(5, 5 + TOKENS)[None]
        with Peak() as scoring, torch.no_grad():
            found = model(ids, use_cache=False).logits
        if room is None and not Path(logits).exists():
            torch.save(found, logits)
        devices: dict[str, int] = {"cpu": 0, "disk": 0}
        for parameter in model.parameters():
            devices["disk" if parameter.is_meta else "cpu"] += parameter.nbytes
        largest = (found - torch.load(logits)).abs().max().item()
    return {
        "memory_mb": devices["cpu"] / MB,
        "disk_mb": devices["disk"] / MB,
        "peak_anonymous_loading_mb": loading.peak - loading.baseline,
        "peak_anonymous_scoring_mb": scoring.peak - loading.baseline,
        "peak_resident_mb": status_mb("VmHWM") - resident,
        "max_logit_difference": largest,
        "bytes": parameter_bytes(model),
    }


def status_mb(key: str) -> float:
    """A line of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(key))


def in_process(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def save_packed(folder: Path, scheme: str, out: Path) -> int:
    """Pack the checkpoint in a process of its own; the bytes of the packed model."""
    program = (
        "import sys, torch, qllm_hf; from transformers import AutoModelForCausalLM as A; "
        "from qllm_hf.reporting.tensors import parameter_bytes; "
        "m = A.from_pretrained(sys.argv[1], dtype=torch.bfloat16, "
        "quantization_config=qllm_hf.QllmConfig.from_scheme(sys.argv[2])); "
        "m.save_pretrained(sys.argv[3]); print(parameter_bytes(m))"
    )
    words = [sys.executable, "-c", program, str(folder), scheme, str(out)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder for the checkpoint, to use it again")
    parser.add_argument("--small", action="store_true", help="a model of 60M parameters; nothing is written")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*json.loads(arguments.measure))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary) / "float"
        if not (folder / "config.json").exists():
            make_checkpoint(folder, SMALL if arguments.small else SHAPE, "500MB")
        for scheme in ("W8", "W4"):
            packed, logits = Path(temporary) / scheme, Path(temporary) / f"{scheme}-logits"
            packed_bytes = save_packed(folder, scheme, packed)
            for source, place in (("on the fly", folder), ("packed", packed)):
                for room in ROOM:
                    found = in_process(str(place), scheme, room, packed_bytes, str(logits))
                    row = {"scheme": scheme, "source": source, "room": "all" if room is None else room, **found}
                    row = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
                    rows.append(row)
                    print(row, flush=True)
    if not arguments.small:
        print(write_results("offload", rows))


if __name__ == "__main__":
    main()
