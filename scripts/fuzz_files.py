"""Damage every kind of file that qllm_hf reads, and see what its commands make of it.

    python scripts/fuzz_files.py --cases 2000 --seed 0

Checkpoints have a campaign of their own (fuzz_checkpoints.py). Here it is the rest: results, answers, cells of a
benchmark, prompts and answers of a judge, rows, work folders and text of a calibration, tables, checkpoints of other
libraries, and what cards are made of. Each case copies a folder with real ones, damages a file, and runs what reads
it. What may come of it:

    right      the result of the undamaged files: what was damaged was made again, or does not matter
    refused    one of our errors, one sentence, and it names a file or folder
    other      another result, where the file says so (its checksum was taken out, or it never had one), or with a
               warning that says what does not count
    FAULT      anything else: another exception, a crash, more than --seconds, more memory than 4 files + 1 GiB, text
               that acts on a terminal or a page, a file written elsewhere, another result without a word

Cases run in a child process, which is started again if it dies. Prints a table of kinds of files and outcomes, and for
every fault how to repeat it (--only 'KIND' --seed S --case N). Ends with 1 if there was any.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from campaign import Case, Outcome, command_line, in_children, limited, table
from campaign import some_cases as of_kinds
from file_damage import DAMAGES
from file_subjects import SUBJECTS, Subject, spoken
from file_subjects.reading import ACTS_ON_TERMINALS, look_at

from qllm_hf import shown
from qllm_hf.cli import output
from qllm_hf.errors import QllmError, QllmWarning
from qllm_hf.evaluation import lines
from qllm_hf.page import html

PLANTS = {
    "line checksums": (lines, "without_checksum"),
    "terminal": (output, "printable"),
    "page": (html.html, "escape"),
}
"""Checks that --plant leaves out, so that the campaign has a fault to find."""
__all__ = ["SUBJECTS", "campaign", "some_cases", "table"]


def damages_of(subject: Subject, path: Path) -> list[str]:
    """The damages that are for a file."""
    return [
        name
        for name, damage in DAMAGES.items()
        if name not in subject.without and (not damage.suffixes or path.suffix in damage.suffixes)
    ]


def run_case(bases: dict[str, tuple[Path, Any]], case: Case, seconds: int) -> Outcome:
    """What came of one case."""
    subject, rng = SUBJECTS[case.kind], random.Random(f"{case.seed} {case.kind} {case.number}")
    base, expected = bases[case.kind]
    with tempfile.TemporaryDirectory() as parent:
        folder, out = shutil.copytree(base, Path(parent) / "damaged", symlinks=True), Path(parent) / "out"
        out.mkdir()
        path = rng.choice(subject.files(folder))
        name = rng.choice(damages_of(subject, path))
        before = path.read_bytes()
        DAMAGES[name].act(rng, path, Path(parent))
        says_so = subject.says_so or DAMAGES[name].says_so or not path.is_file() or path.read_bytes() == before
        outcome = limited(case, folder, seconds, lambda: judge(subject, folder, out, expected, says_so))
        outside = {each.name for each in Path(parent).iterdir()} - {"damaged", "out", "elsewhere"}
        if outside or Path("/tmp/outside").exists():
            return Outcome(case, "FAULT", f"{name}: something was written outside: {sorted(outside)}")
    return outcome._replace(detail=f"{name} of {path.name}: {outcome.detail}")


def judge(subject: Subject, folder: Path, out: Path, expected: Any, says_so: bool) -> tuple[str, str]:
    """What is made of a damaged folder."""
    spoken.clear()
    names = [str(folder), *(path.name for path in folder.rglob("*")), "the judge 'judge' at"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = plain(subject.read(folder, out), folder, out)
        except QllmError as error:
            try:
                look_at(shown.printable(str(error)), ACTS_ON_TERMINALS)
            except Exception as wrong:
                return "FAULT", str(wrong)
            if not any(name in str(error) for name in names) or len(str(error)) > 3000:
                return "FAULT", f"names no file, or is long: {str(error)[:500]}"
            return "refused", str(error)[:200]
        except Exception as error:
            return "FAULT", f"{type(error).__name__}: {str(error)[:1000]}"
    if found == expected:
        return "right", ""
    said = [str(each.message) for each in caught if issubclass(each.category, QllmWarning)] + spoken
    if says_so or any("does not count" in each for each in said):
        return "other", ""
    return "FAULT", "another result, and not a word"


def plain(found: Any, folder: Path, out: Path) -> str:
    """A result as a text without the places where it was made."""
    text = found if isinstance(found, str) else json.dumps(found, default=repr, sort_keys=True)
    return text.replace(str(folder), "DIR").replace(str(out), "OUT")


def campaign(cases: Iterable[Case], *, seconds: int = 10, plant: str | None = None, jobs: int = 1) -> list[Outcome]:
    """The outcome of every case. A case in which the process dies, or that cannot be stopped, is a fault."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    cases = list(cases)
    with tempfile.TemporaryDirectory() as parent:
        bases = {}
        made: dict[Any, Path] = {}
        for kind in dict.fromkeys(case.kind for case in cases):
            subject = SUBJECTS[kind]
            if subject.make not in made:
                made[subject.make] = Path(parent) / f"base {len(made)}"
                made[subject.make].mkdir()
                subject.make(made[subject.make])
            with tempfile.TemporaryDirectory() as once:
                folder, out = shutil.copytree(made[subject.make], Path(once) / "damaged"), Path(once) / "out"
                out.mkdir()
                bases[kind] = (made[subject.make], plain(subject.read(folder, out), folder, out))
        run = partial(run_case, bases, seconds=seconds)
        return in_children(cases, run, seconds=seconds, plant=None if plant is None else PLANTS[plant], jobs=jobs)


def some_cases(count: int, seed: int, only: str | None = None) -> list[Case]:
    """The kinds of files in turn, quick ones eight times as often as others."""
    turns = [[kind for kind, subject in SUBJECTS.items() if subject.is_quick or turn == 0] for turn in range(8)]
    return of_kinds([kind for turn in turns for kind in turn], count, seed, only)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command_line("Damage every kind of file that qllm_hf reads.", list(SUBJECTS), PLANTS, campaign)
