"""Damage a packed checkpoint in every way, and see what loading makes of it.

    python scripts/fuzz_checkpoints.py --cases 2000 --seed 0

Each case copies a small checkpoint of several files, damages it by one of the kinds below, and loads it. What may
come of it:

    right      the model, with the logits of the undamaged one
    refused    one of our errors, and its message names the folder or a file of it
    other      a model with other logits: only where files say that they hold another one, or where bits changed that
               nothing but a checksum can see; there `verify=True` has to refuse
    FAULT      anything else: another exception, a crash, more than --seconds, more memory than 4 files + 1 GiB

Cases run in a child process, which is started again if it dies. Prints a table of kinds and outcomes, and for every
fault how to repeat it (--only KIND --seed S --case N). Ends with 1 if there was any.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parent))
from campaign import Case, Outcome, command_line, in_children, limited, table
from campaign import some_cases as of_kinds
from checkpoint_damage import KINDS, Kind

import qllm_hf
from qllm_hf import loading, quantizer
from qllm_hf.checkpoint import read_checkpoint
from qllm_hf.cli.main import app
from qllm_hf.errors import QllmError

IDS = torch.tensor([[1, 5, 9, 2]])
PLANTS = {
    "values": (quantizer, "check_values"),
    "config": (loading, "check_config"),
    "folder": (loading, "check_folder"),
    "checksums": (loading, "verify_checkpoint"),
}
"""Checks that --plant leaves out, so that the campaign has a fault to find."""
__all__ = ["KINDS", "campaign", "some_cases", "table"]


def make_base(folder: Path) -> torch.Tensor:
    """A packed Llama in several files, and its logits."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=64, max_position_embeddings=64))
    packed = qllm_hf.quantize_(model.eval(), "W4KV8", w_group_size=32)
    words = Tokenizer(WordLevel({"once": 0, "upon": 1, "?": 2}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    loading.save_model(packed, tokenizer, folder, max_shard_size="16KB")
    return logits(loading.load_model(str(folder)))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(IDS, use_cache=False).logits
    return found


def run_case(base: Path, expected: torch.Tensor, case: Case, seconds: int) -> Outcome:
    """What came of one case."""
    kind = KINDS[case.kind]
    with tempfile.TemporaryDirectory() as parent:
        folder = shutil.copytree(base, Path(parent) / "damaged", symlinks=True)
        kind.damage(random.Random(f"{case.seed} {case.kind} {case.number}"), folder)

        def judge() -> tuple[str, str]:
            if case.kind.startswith("tokenizer"):
                return _judge_tokenizer(folder)
            word, detail = _judge(folder, expected, kind)
            is_asked = word != "FAULT" and case.number % 5 == 0
            return _judge_info(folder, word) if is_asked else (word, detail)

        return limited(case, folder, seconds, judge)


def _judge(folder: Path, expected: torch.Tensor, kind: Kind) -> tuple[str, str]:
    try:
        read_checkpoint(folder)
    except QllmError:
        pass  # loading says it again
    except Exception as error:
        return "FAULT", f"read_checkpoint: {type(error).__name__}: {error}"
    try:
        model = loading.load_model(str(folder))
    except QllmError as error:
        names = (str(folder), *(path.name for path in folder.iterdir()), "config.json", "checkpoint")
        named = any(name in str(error) for name in names)
        return ("refused", "") if named and len(str(error)) < 2000 else ("FAULT", f"names no file: {error}")
    except Exception as error:
        return "FAULT", f"{type(error).__name__}: {error}"
    try:
        found = logits(model)
    except Exception as error:
        return "FAULT", f"loaded, and then {type(error).__name__}: {error}"
    if found.shape == expected.shape and torch.equal(found, expected):
        return "right", ""
    if kind.other == "says so":
        return "other", ""
    if kind.other == "bits":
        try:
            loading.load_model(str(folder), verify=True)
        except QllmError:
            return "other", ""
        return "FAULT", "other logits, and verify=True found nothing"
    return "FAULT", "other logits, and no error"


def _judge_tokenizer(folder: Path) -> tuple[str, str]:
    try:
        tokenizer = loading.load_tokenizer(str(folder))
    except QllmError as error:
        return ("refused", "") if str(folder) in str(error) else ("FAULT", f"names no file: {error}")
    except Exception as error:
        return "FAULT", f"{type(error).__name__}: {error}"
    try:
        return ("right" if tokenizer("once")["input_ids"] == [0] else "other"), ""
    except Exception as error:
        return "FAULT", f"loaded, and then {type(error).__name__}: {error}"


def _judge_info(folder: Path, word: str) -> tuple[str, str]:
    """`qllm-hf info`, which reads the same files: a command that was answered, or refused in one of our sentences."""
    done = CliRunner().invoke(app, ["info", str(folder), "--json"])
    if done.exit_code not in (0, 1) or "--debug shows" in done.output:
        return "FAULT", f"info: exit code {done.exit_code}: {done.output[-500:]}"
    if word == "right" and done.exit_code:
        return "FAULT", f"info refuses what can be loaded: {done.output[-500:]}"
    return word, ""


def campaign(cases: Iterable[Case], *, seconds: int = 10, plant: str | None = None, jobs: int = 1) -> list[Outcome]:
    """The outcome of every case. A case in which the process dies, or that cannot be stopped, is a fault."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as parent:
        base = Path(parent) / "base"
        expected = make_base(base)
        run = partial(run_case, base, expected, seconds=seconds)
        return in_children(cases, run, seconds=seconds, plant=None if plant is None else PLANTS[plant], jobs=jobs)


def some_cases(count: int, seed: int, only: str | None = None) -> list[Case]:
    """The kinds in turn."""
    return of_kinds(list(KINDS), count, seed, only)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command_line("Damage a packed checkpoint in every way, and load it.", list(KINDS), PLANTS, campaign)
