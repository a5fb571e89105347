"""Runs cases in several processes that share one model, and writes what each of them found.

    python parallel_ranks.py FOLDER

FOLDER/cases.json lists the cases; FOLDER/<name>-<rank>.json and .safetensors are the answers. Everything is imported
once, cases of one process run here, and the processes of each other size are forked from this one.
"""

import contextlib
import faulthandler
import io
import json
import os
import signal
import sys
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from transformers.utils import logging

import qllm_hf
from qllm_hf.cache import cache_nbytes
from qllm_hf.nn import PackedModule
from qllm_hf.nn.parameters import local
from qllm_hf.ops import prefer
from qllm_hf.reporting.tensors import parameter_bytes

NEW_TOKENS = 6
LIMIT = 180
"""Seconds that the cases of one size may take, several times what they need on two cores."""
PATIENCE = timedelta(seconds=60)
"""How long one process waits for another: where one of them failed alone, its case says so soon."""


def measure(case, folder):
    """Logits, generated tokens and bytes of one model, cut over the processes of this group."""
    options = {"dtype": "float32", **case.get("load", {})}
    if dist.is_initialized():
        how = {"tp_size": dist.get_world_size(), **case.get("distributed", {})}
        options["distributed_config"] = DistributedConfig(**how)
    if case.get("config") is not None:
        options["quantization_config"] = qllm_hf.QllmConfig(**case["config"])
    model = AutoModelForCausalLM.from_pretrained(case["path"], **options).eval()
    ids = torch.tensor(case["ids"])
    with torch.no_grad(), prefer(case["prefer"]) if "prefer" in case else contextlib.nullcontext():
        logits = model(ids, use_cache=False).logits
        again = model(ids).logits  # what the first call prepared serves the second
        written = model.generate(
            ids, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True,
            **case.get("generate", {}),
        )  # fmt: skip
    if "save" in case:
        model.save_pretrained(folder / case["save"])
    tensors = {
        "logits": logits,
        "again": again,
        "sequences": written.sequences,
        "steps": torch.stack(written.logits, 1),
    }
    numbers = {
        "cache_bytes": cache_nbytes(written.past_key_values),
        "weight_bytes": parameter_bytes(model, here=True),
        "packed_bytes": sum(
            local(module._parameters[name]).nbytes
            for module in model.modules()
            if isinstance(module, PackedModule)
            for name in module.packed_names()
        ),
        "report": str(qllm_hf.report(model)) if case.get("report") else "",
    }
    return {key: value.contiguous() for key, value in tensors.items()}, numbers


def command(words):
    """What a command prints, and its exit code."""
    from qllm_hf.cli.main import app

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(words, standalone_mode=False)
            code = 0
        except SystemExit as stop:
            code = stop.code
    return {"out": out.getvalue(), "err": err.getvalue(), "code": code}


def run(case, folder, rank):
    answer = f"{case['name']}-{rank}"
    try:
        if "command" in case:
            numbers = command(case["command"])
        else:
            tensors, numbers = measure(case, folder)
            save_file(tensors, folder / f"{answer}.safetensors")
    except Exception as error:  # what the test looks at
        numbers = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    (folder / f"{answer}.json").write_text(json.dumps(numbers))


def in_group(cases, folder, size):
    """The cases in `size` forked processes, one after another; if one of them ends early, all do."""
    # as torchrun has one: commands meet there, and look who is still there
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as meeting:
        children = {}
        for rank in range(size):
            child = os.fork()
            if child == 0:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
                code = 1
                try:
                    with time_limit(f"process {rank} of {size}"):
                        as_rank(rank, size, cases, folder, meeting)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            children[child] = rank
        while children:
            child, status = os.wait()
            rank = children.pop(child)
            if status:  # the others would wait for it
                for other in children:
                    os.kill(other, signal.SIGKILL)
                raise SystemExit(f"process {rank} of {size} ended with {os.waitstatus_to_exitcode(status)}")


def as_rank(rank, size, cases, folder, meeting):
    """The cases, in one process of a group."""
    for number, case in enumerate(cases):
        if not dist.is_initialized():
            files = dist.FileStore(f"{meeting}/{number}", size)
            dist.init_process_group("gloo", store=files, rank=rank, world_size=size, timeout=PATIENCE)
        run(case, folder, rank)
        if "command" in case and dist.is_initialized():  # commands leave the group, unless they failed
            dist.destroy_process_group()


@contextlib.contextmanager
def time_limit(who):
    """Where a process is when it takes far too long, or when it crashes, is said on stderr."""
    sys.stderr.write(f"{who} is {os.getpid()}\n")
    sys.stderr.flush()
    faulthandler.enable()
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def main(folder):
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    cases = json.loads((folder / "cases.json").read_text())
    with time_limit("the first process"):
        for case in cases:
            if case["size"] == 1:  # here, so that processes find everything imported and done once
                run(case, folder, 0)
    for size in sorted({case["size"] for case in cases} - {1}):
        in_group([case for case in cases if case["size"] == size], folder, size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
