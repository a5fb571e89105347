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

import argparse
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parent))
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


class Case(NamedTuple):
    kind: str
    seed: int
    number: int


class Outcome(NamedTuple):
    case: Case
    word: str
    detail: str = ""

    @property
    def is_fault(self) -> bool:
        return self.word == "FAULT"


class TooLongError(BaseException):
    """Not an Exception, so that nothing on the way can take it for one of its own."""


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
        room = 4 * sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) + 2**30
        before = _peak(reset=True)
        signal.alarm(seconds)
        try:
            if case.kind.startswith("tokenizer"):
                word, detail = _judge_tokenizer(folder)
            else:
                word, detail = _judge(folder, expected, kind)
                if word != "FAULT" and case.number % 5 == 0:
                    word, detail = _judge_info(folder, word)
        except TooLongError:
            word, detail = "FAULT", f"more than {seconds} s"
        finally:
            signal.alarm(0)
        used = _peak() - before
        if used > room:
            word, detail = "FAULT", f"{used} bytes of memory, {room} allowed; otherwise {word} {detail}"
    return Outcome(case, word, detail)


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


def _peak(*, reset: bool = False) -> int:
    """Bytes of memory that this process held at most since the last reset; 0 where the system does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def _child(pipe: Any, base: Path, expected: torch.Tensor, cases: list[Case], seconds: int, plant: str | None) -> None:
    def stop(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGALRM, stop)
    warnings.simplefilter("ignore")
    if plant is not None:
        setattr(*PLANTS[plant], lambda *args, **kwargs: None)
    for case in cases:
        pipe.send(run_case(base, expected, case, seconds))
    pipe.close()


def campaign(cases: Iterable[Case], *, seconds: int = 10, plant: str | None = None) -> list[Outcome]:
    """The outcome of every case. A case in which the process dies, or that cannot be stopped, is a fault."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    waiting, outcomes = list(cases), []
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as parent:
        base = Path(parent) / "base"
        expected = make_base(base)
        while waiting:
            here, there = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(there, base, expected, waiting, seconds, plant))
            child.start()
            there.close()
            died = ""
            try:
                for _ in range(len(waiting)):
                    if not here.poll(6 * seconds):
                        child.kill()
                        died = "could not be stopped"
                        break
                    outcomes.append(here.recv())
                    waiting.pop(0)
            except EOFError:
                died = "the process died"
            child.join()
            if died:
                outcomes.append(Outcome(waiting.pop(0), "FAULT", f"{died} (exit code {child.exitcode})"))
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """Kinds and what came of them, a line each."""
    words = ("right", "refused", "other", "FAULT")
    counts = Counter((outcome.case.kind, outcome.word) for outcome in outcomes)
    kinds = sorted({outcome.case.kind for outcome in outcomes})
    rows = [(kind, *(counts[kind, word] for word in words)) for kind in kinds]
    rows.append((f"all {len(outcomes)}", *(sum(row[i] for row in rows) for i in range(1, 5))))
    lines = [f"{'kind':28}" + "".join(f"{word:>9}" for word in words)]
    return "\n".join(lines + [f"{row[0]:28}" + "".join(f"{number or '-':>9}" for number in row[1:]) for row in rows])


def some_cases(count: int, seed: int, only: str | None = None) -> list[Case]:
    """The kinds in turn."""
    kinds = [only] if only else list(KINDS)
    return [Case(kinds[number % len(kinds)], seed, number) for number in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Damage a packed checkpoint in every way, and load it.")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(KINDS), help="damage of one kind")
    parser.add_argument("--case", type=int, help="of --only: this one alone, as a report names it")
    parser.add_argument("--seconds", type=int, default=10, help="that a case may take")
    parser.add_argument("--plant", choices=list(PLANTS), help="leave a check out: the campaign has to find it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = some_cases(given.cases, given.seed, given.only)
    if given.case is not None:
        if given.only is None:
            parser.error("--case needs --only")
        cases = [Case(given.only, given.seed, given.case)]
    outcomes = campaign(cases, seconds=given.seconds, plant=given.plant)
    print(table(outcomes))
    faults = [outcome for outcome in outcomes if outcome.is_fault]
    for case, _, detail in faults:
        print(f"\n--only {case.kind} --seed {case.seed} --case {case.number}\n    {detail[:600]}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
