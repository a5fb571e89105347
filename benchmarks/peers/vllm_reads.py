"""What vLLM makes of exported checkpoints, run by its own Python: it pins versions that nothing else here can share.

    OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_PYTHON benchmarks/peers/vllm_reads.py CASES.json OUT.json

CASES.json is a list of {"name", "path", "dtype", "ids"}, OUT.json one of {"name", "logprobs" of ids[1:], "tokens" that
follow greedily} or {"name", "error"}. One process for all, since vLLM takes half a minute to start.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that a model's error arrives here, and not in a log
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
NEW_TOKENS = 16
KV_BYTES = 2**27


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of a prompt's tokens, and what follows it greedily, under one checkpoint."""
    from vllm import LLM, SamplingParams

    ids = case["ids"]
    model = LLM(
        case["path"],
        dtype=case["dtype"],
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=2,
        kv_cache_memory_bytes=KV_BYTES,
        **case.get("options", {}),
    )
    how = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, prompt_logprobs=0, ignore_eos=True)
    (said,) = model.generate([{"prompt_token_ids": ids}], how, use_tqdm=False)
    logprobs = [said.prompt_logprobs[place][token].logprob for place, token in enumerate(ids) if place]
    return {"logprobs": logprobs, "tokens": list(said.outputs[0].token_ids)}


def first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def main() -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    results = []
    for case in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            results.append({"name": case["name"], **measure(case)})
        except Exception as error:  # whatever it says is the result
            results.append({"name": case["name"], "error": first_cause(error)})
        gc.collect()
        with contextlib.suppress(Exception):
            cleanup_dist_env_and_memory()
        Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")
        print(case["name"], results[-1].get("error", "ran")[:100], flush=True)


if __name__ == "__main__":
    main()
