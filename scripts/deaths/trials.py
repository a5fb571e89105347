"""One trial: a command is disturbed, what is left is judged, and the same command is given again."""

from __future__ import annotations

import errno
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from qllm_hf import whole
from qllm_hf.evaluation import answers, engine
from qllm_hf.evaluation.lines import read_lines
from qllm_hf.methods.work import Work

from . import children, points
from .jobs import JOBS, act, prepare
from .judging import half_written, in_another_order, is_pythons_probe, read_folder_of_results, read_model, tree

WAYS = {
    "before": (points.KILL_BEFORE, 0),
    "after": (points.KILL_AFTER, 0),
    "random": (points.COUNT, 0),
    "full": (points.FAIL_SPACE, errno.ENOSPC),
    "broken": (points.FAIL_ONCE, errno.EIO),
    "interrupt": (points.INTERRUPT, signal.SIGINT),
    "terminate": (points.INTERRUPT, signal.SIGTERM),
}
"""{way: (action, error or signal)}."""
KILLS = ("before", "after", "random")


class Outcome(NamedTuple):
    word: str
    detail: str = ""


class Trials:
    """All trials of one job.

    Attributes:
        points: how many an undisturbed run has.
        seconds: that it takes.
    """

    def __init__(self, name: str, base: Path, scratch: Path) -> None:
        self.job, self.base, self.scratch, self.name = JOBS[name], base, scratch, name
        place = self._new_place()
        self.before = tree(place)
        ended = children.run(self._counted(place), place)
        assert ended.code == 0, f"{name} cannot be run undisturbed: {ended.said}"
        self.points, self.done, _ = ended.value
        self.seconds, self.after = ended.seconds, tree(place)
        self.finished = self._finished(place)
        self.logits = {
            folder.name: read_model(folder)
            for folder in (place / "out", base / "other")
            if self.job.kind == "model" and not self.job.atomic
        }
        shutil.rmtree(place)

    def numbers(self, way: str, rng: random.Random, cases: int | None, moments: int) -> list[int]:
        """Which points are tried; for random moments, thousandths of the time."""
        if way == "random":
            return [rng.randrange(1000) for _ in range(moments)]
        every = list(range(1, self.points + 1))
        return every if cases is None or cases >= len(every) else sorted(rng.sample(every, cases))

    def one(self, way: str, number: int) -> Outcome:
        """Disturb, judge, repeat, compare."""
        place = self._new_place()
        try:
            return self._one(way, number, place)
        except AssertionError as error:
            return Outcome("FAULT", str(error))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _one(self, way: str, number: int, place: Path) -> Outcome:
        action, code = WAYS[way]
        if way == "random":
            ended = children.run(self._counted(place), place, kill_after=self.seconds * number / 1000)
            where = f"{number / 10:.1f} % of the time"
        else:
            ended = children.run(self._counted(place, action, number, code), place)
            where = f"{ended.value[2]} (point {number})" if ended.value else f"point {number}"
        _check_end(way, ended, place, where)
        left = tree(place)
        word, known = self._judge(left, place, where), self._finished(place)
        if ended.code in (1, 130, 143) and self.job.kind not in ("results", "files") and self.name != "calibrate":
            # it could still act: nothing of it may be left, locks included
            extra = sorted(left.keys() - self.before.keys() - self.after.keys())
            assert not extra or not self.job.atomic, f"{where}: it ended by itself and left {extra}"
        again = self.job.again if (place / "out").exists() or (place / "out.gguf").exists() else ()
        ended = children.run(self._counted(place, more=again), place)
        assert ended.code == 0, f"{where}: {word}, and the same command then says {ended.said[-500:]}"
        self._compare(tree(place), where)
        _, done, *_ = ended.value
        expected = self.done - known
        assert done <= expected, f"{where}: {known} of {self.done} were finished, and {done} were done again"
        return Outcome(word)

    def _judge(self, left: dict[str, bytes], place: Path, where: str) -> str:
        """before, after, refused or under way."""
        names = ("out/", "out.gguf")
        found, before, after = (
            {name: content for name, content in each.items() if name.startswith(names)}
            for each in (left, self.before, self.after)
        )
        if found == before:
            return "before"
        if found == after:
            return "after"
        if self.job.kind == "files":
            half = half_written({name: content for name, content in found.items() if name[-1] != "/"}, before, after)
            assert not half, f"{where}: half written: {half}"
        if self.job.kind in ("results", "files"):
            assert not (said := read_folder_of_results(place / "out")), f"{where}: {said}"
            return "under way"
        changed = sorted(name for name in {*found, *after} if found.get(name) != after.get(name))
        assert not self.job.atomic, f"{where}: half is read as whole, or in the way: {changed}"
        read = children.run(lambda: (read_model(place / "out"), 0), place).value
        words = set()
        for reader, logits in read.items():
            if isinstance(logits, str):
                assert logits.startswith("refused") or reader == "transformers", f"{where}: {reader}: {logits}"
                words.add("refused")
            else:
                allowed = [known[reader] for known in self.logits.values()]
                assert logits in allowed, f"{where}: {reader} takes a mixture for a model"
                words.add("before" if logits == allowed[-1] else "after")
        return words.pop() if len(words) == 1 else "refused"

    def _compare(self, found: dict[str, bytes], where: str) -> None:
        more, fewer = sorted(found.keys() - self.after.keys()), sorted(self.after.keys() - found.keys())
        if not self.job.atomic:  # what a killed safetensors leaves in place is hidden, and not ours to remove
            more = [name for name in more if not Path(name).name.startswith(".tmp")]
        more = [name for name in more if not is_pythons_probe(name, found[name])]
        assert not more and not fewer, f"{where}: after the next run there are {more} more, {fewer} fewer"
        other = sorted(name for name, content in self.after.items() if found[name] != content)
        if self.job.kind == "results":  # a scheme that failed comes last: so do its lines, and what is drawn from them
            other = [name for name in other if not in_another_order(name, self.after, found)]
        assert not other, f"{where}: after the next run these differ from an undisturbed one: {other}"

    def _finished(self, place: Path) -> int:
        """How much of the work is kept: batches of questions, or calibrated blocks."""
        out = place / "out"
        if self.job.kind == "results":
            scored = {(entry["scheme"], entry["task"]) for entry in read_lines(out / "records.jsonl")}
            return len(scored)
        progress = place / ".out.calibration" / "progress.json"
        if self.name == "calibrate" and progress.is_file():
            import json

            return int(json.loads(progress.read_text())["done"])
        return 0

    def _counted(
        self, place: Path, action: int = points.COUNT, number: int = 0, code: int = 0, more: tuple[str, ...] = ()
    ) -> Callable[[], Any]:
        """The job; what it returns, also where it ends by SystemExit: (points, things done, the point in words)."""

        def work() -> Any:
            done = [0]
            _count(engine, "_record", done)
            _count(Work, "save_block", done)
            job = act(self.job, self.base, place, more)
            points.arm(place, action, number, code)
            exit_code = children.exit_code(job)
            value = points.seen(), done[0], points.what()
            points.arm(Path("/nowhere"), points.COUNT)
            return value, exit_code

        return work

    def _new_place(self) -> Path:
        place = self.scratch / "place"
        shutil.rmtree(place, ignore_errors=True)
        prepare(self.job, self.base, place)
        return place


def _check_end(way: str, ended: children.Ended, place: Path, where: str) -> None:
    """A command that could still speak said one sentence, and ended with the right code."""
    assert ended.code != -99, f"{where}: it hangs"
    if way in KILLS:
        return
    assert ended.code in (0, 1, 130, 143), f"{where}: exit code {ended.code}: {ended.said[-700:]}"
    stopped = {"interrupt": 130, "terminate": 143}.get(way)
    if stopped is not None:
        assert ended.code in (0, stopped), f"{where}: exit code {ended.code}: {ended.said[-500:]}"
        assert ended.code == 0 or "stopped" in ended.said, f"{where}: it does not say that it stopped: {ended.said}"
    elif ended.code:
        last = ended.said.strip().splitlines()[-1] if ended.said.strip() else ""
        assert last.startswith("error: ") and "--debug" not in last, (
            f"{where}: no sentence of ours: {ended.said[-500:]}"
        )
        assert str(place) in last, f"{where}: it names no file: {last}"
    assert "Traceback" not in ended.said, f"{where}: {ended.said[-700:]}"


def _count(owner: Any, name: str, done: list[int]) -> None:
    real = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        done[0] += 1
        return real(*args, **options)

    setattr(owner, name, counted)


def _plant_half() -> None:
    """Files are written in place."""
    import contextlib

    @contextlib.contextmanager
    def in_place(place: Path, check: Any, finish: Any) -> Any:
        check()
        place.mkdir(parents=True, exist_ok=True)
        yield place
        finish(place)

    whole.whole_folder = in_place


def _plant_leftovers() -> None:
    """What a killed process left is never removed."""
    whole._restore = lambda place: None
    whole.remove_left_files = lambda path: None


def _plant_again() -> None:
    """Answers and scores are kept, and not believed."""
    engine.Store.find = lambda self, wanted: None
    answers.Journal.get = lambda self, key: None


PLANTS = {"half": _plant_half, "leftovers": _plant_leftovers, "again": _plant_again}
"""Faults that --plant puts in, so that the campaign has one to find."""
