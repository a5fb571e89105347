"""What campaigns of damage share: cases in child processes with a limit of time and memory, and a table of outcomes."""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

_WAIT = 18
"""Times the limit of processor time that a case may take by the clock."""
WORDS = ("right", "refused", "other", "FAULT")


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


def limited(case: Case, folder: Path, seconds: int, judge: Callable[[], tuple[str, str]]) -> Outcome:
    """What `judge` says of a case; a fault if it takes longer, or more memory than four times the files and 1 GiB."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    room, before = 4 * sum(sizes) + 2**30, _peak(reset=True)
    # of the processor, since a machine may be busy with other things; what waits for something takes none of it
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(_WAIT * seconds)
    try:
        word, detail = judge()
    except TooLongError:
        word, detail = "FAULT", f"more than {seconds} s"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    used = _peak() - before
    if used > room:
        word, detail = "FAULT", f"{used} bytes of memory, {room} allowed; otherwise {word} {detail}"
    return Outcome(case, word, detail)


def _peak(*, reset: bool = False) -> int:
    """Bytes of memory that this process held at most since the last reset; 0 where the system does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def in_children(
    cases: Iterable[Case],
    run_case: Callable[[Case], Outcome],
    *,
    seconds: int,
    plant: tuple[Any, str] | None = None,
    jobs: int = 1,
) -> list[Outcome]:
    """The outcome of every case. A case in which the process dies, or that cannot be stopped, is a fault.

    Args:
        plant: (module, name of a function) of a check that is left out.
        jobs: processes at a time.
    """
    cases = list(cases)
    with ThreadPoolExecutor(jobs) as pool:
        done = pool.map(lambda first: _one_after_another(cases[first::jobs], run_case, seconds, plant), range(jobs))
        return [outcome for part in done for outcome in part]


def _one_after_another(
    waiting: list[Case], run_case: Callable[[Case], Outcome], seconds: int, plant: tuple[Any, str] | None
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    context = multiprocessing.get_context("fork")
    while waiting:
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(there, waiting, run_case, plant))
        child.start()
        there.close()
        died = ""
        try:
            for _ in range(len(waiting)):
                if not here.poll(3 * _WAIT * seconds):
                    child.kill()
                    died = "could not be stopped"
                    break
                outcomes.append(here.recv())
                waiting.pop(0)
                if outcomes[-1].is_fault:  # a campaign is long: whoever watches need not wait for its end
                    print(repeat(outcomes[-1]), file=sys.stderr, flush=True)
        except EOFError:
            died = "the process died"
        child.join()
        if died:
            outcomes.append(Outcome(waiting.pop(0), "FAULT", f"{died} (exit code {child.exitcode})"))
    return outcomes


def _child(pipe: Any, cases: list[Case], run_case: Callable[[Case], Outcome], plant: tuple[Any, str] | None) -> None:
    def stop(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGPROF, stop)
    warnings.simplefilter("ignore")
    if plant is not None:
        setattr(*plant, _nothing)
    for case in cases:
        pipe.send(run_case(case))
    pipe.close()


def _nothing(*given: Any, **options: Any) -> Any:
    """In the place of a check: what it was given, for those that hand it back."""
    return given[0] if given else None


def some_cases(kinds: Sequence[str], count: int, seed: int, only: str | None = None) -> list[Case]:
    """The kinds in turn."""
    chosen = [only] if only else list(kinds)
    return [Case(chosen[number % len(chosen)], seed, number) for number in range(count)]


def table(outcomes: list[Outcome]) -> str:
    """Kinds and what came of them, a line each."""
    counts = Counter((outcome.case.kind, outcome.word) for outcome in outcomes)
    kinds = sorted({outcome.case.kind for outcome in outcomes})
    rows = [(kind, *(counts[kind, word] for word in WORDS)) for kind in kinds]
    rows.append((f"all {len(outcomes)}", *(sum(row[i] for row in rows) for i in range(1, 5))))
    lines = [f"{'kind':32}" + "".join(f"{word:>9}" for word in WORDS)]
    return "\n".join(lines + [f"{row[0]:32}" + "".join(f"{number or '-':>9}" for number in row[1:]) for row in rows])


def repeat(outcome: Outcome) -> str:
    """How to see an outcome again, and what it was."""
    case = outcome.case
    return f"--only '{case.kind}' --seed {case.seed} --case {case.number}\n    {outcome.detail[:600]}"


def command_line(
    description: str,
    kinds: Sequence[str],
    plants: Iterable[str],
    campaign: Callable[..., list[Outcome]],
) -> None:
    """The program: --cases, --seed, --only, --case, --seconds, --plant. Ends with 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(kinds), metavar="KIND", help="damage of one kind")
    parser.add_argument("--case", type=int, help="of --only: this one alone, as a report names it")
    parser.add_argument("--seconds", type=int, default=10, help="of processor time that a case may take")
    parser.add_argument("--plant", choices=list(plants), help="leave a check out: the campaign has to find it")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    given = parser.parse_args()
    cases = some_cases(kinds, given.cases, given.seed, given.only)
    if given.case is not None:
        if given.only is None:
            parser.error("--case needs --only")
        cases = [Case(given.only, given.seed, given.case)]
    outcomes = campaign(cases, seconds=given.seconds, plant=given.plant, jobs=given.jobs)
    print(table(outcomes))
    faults = [outcome for outcome in outcomes if outcome.is_fault]
    for fault in faults:
        print(f"\n{repeat(fault)}")
    sys.exit(1 if faults else 0)
