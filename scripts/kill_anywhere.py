"""Kill every command at every change of a file, and at random moments; give it again; compare.

    python scripts/kill_anywhere.py --cases 100 --seed 0

A process is forked that has everything imported, and runs a command whose output goes to a new folder. At one point (a
file is opened, written, renamed, removed, ...; points.c counts them for Python, C++ and Rust alike) or moment it

    kill        is killed before it, or after it: half a write is on the disk
    random      is killed, anywhere
    full        finds the disk full from there on
    broken      gets an input/output error, once
    interrupt   gets Ctrl-C;  terminate: SIGTERM

Then the folder has to be as before or as after (`save_pretrained`, which writes in place: or refused by every reader),
the same command has to end with what an undisturbed run makes, byte for byte (scores: without dates and seconds), no
file more, and with nothing done again that was finished. Ends with 1 if there was a fault, and says how to repeat it.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from deaths import points


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill every command at every change of a file.")
    parser.add_argument("--cases", type=int, help="of each job and way: that many points, drawn by --seed (all)")
    parser.add_argument("--moments", type=int, default=100, help="random moments of each job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default="all", help="some of them, with commas between")
    parser.add_argument("--ways", default="all", help="some of them, with commas between")
    parser.add_argument("--point", type=int, help="this one alone, as a report names it")
    parser.add_argument("--plant", choices=["half", "leftovers", "again"], help="a fault to be found")
    given = parser.parse_args()
    if not points.is_loaded():
        points.start_again_with_points()

    from deaths.jobs import JOBS, import_all, make_base, make_scores
    from deaths.trials import KILLS, PLANTS, WAYS, Trials

    chosen = list(JOBS) if given.jobs == "all" else given.jobs.split(",")
    ways = list(WAYS) if given.ways == "all" else given.ways.split(",")
    for option, names, known in (("--jobs", chosen, JOBS), ("--ways", ways, WAYS)):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"{option} {', '.join(unknown)}: there are {', '.join(known)}")
    if given.plant:
        PLANTS[given.plant]()
    counts: Counter[tuple[str, str, str]] = Counter()
    signal.signal(signal.SIGTERM, _stop)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            base = Path(scratch) / "base"
            make_base(base)
            if any(JOBS[name].scores for name in chosen):
                make_scores(base)
            import_all()
            for name in chosen:
                trials = Trials(name, base, Path(scratch))
                print(f"{name}: {trials.points} points, {trials.seconds:.2f} s", file=sys.stderr, flush=True)
                # a function of Python says what went wrong by exceptions of its own
                for way in ways if not JOBS[name].is_function else [way for way in ways if way in KILLS]:
                    rng = random.Random(f"{given.seed} {name} {way}")
                    numbers = trials.numbers(way, rng, given.cases, given.moments)
                    for number in [given.point] if given.point is not None else numbers:
                        outcome = trials.one(way, number)
                        counts[name, way, outcome.word] += 1
                        if outcome.word == "FAULT":
                            print(
                                f"--jobs {name} --ways {way} --point {number}\n    {outcome.detail[:600]}", flush=True
                            )
    finally:
        print(_table(counts), flush=True)
    sys.exit(1 if any(word == "FAULT" for *_, word in counts) else 0)


def _stop(*_: object) -> None:
    """A campaign that is told to end says what it has found; some programs tell it twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _table(counts: Counter[tuple[str, str, str]]) -> str:
    words = ("before", "after", "refused", "under way", "FAULT")
    lines = [f"{'job':12}{'way':12}" + "".join(f"{word:>11}" for word in words)]
    for name, way in dict.fromkeys((name, way) for name, way, _ in counts):
        lines.append(f"{name:12}{way:12}" + "".join(f"{counts[name, way, word] or '-':>11}" for word in words))
    total = [sum(number for (*_, found), number in counts.items() if found == word) for word in words]
    lines.append(f"{'all ' + str(counts.total()):24}" + "".join(f"{number or '-':>11}" for number in total))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
