"""A sweep on machines that are made up here: what is lost is begun again, what fails is told, nothing is doubled."""

from dataclasses import replace

import pytest
from made_results import record_of
from measured_results import results_of

from qllm_hf.cluster import run as cluster_run
from qllm_hf.cluster.footprint import Footprint
from qllm_hf.cluster.pool import Ended, Lost, Started
from qllm_hf.cluster.run import sweep_on
from qllm_hf.cluster.worker import Asked, Failed, Made, Scored, Seen, Subject, look, measure
from qllm_hf.errors import CheckpointError, ModelError
from qllm_hf.evaluation.lines import read_lines
from qllm_hf.evaluation.store import Store
from qllm_hf.loading import load_tokenizer
from qllm_hf.results import read_results
from qllm_hf.sweep.models import Models
from qllm_hf.sweep.run import Settings, sweep
from qllm_hf.sweep.schemes import parse_candidates

TASKS = ["mini_cloze", "mini_ethics", "mini_robustness"]
SCHEMES = ["W4", "KV2"]


class Here:
    """Machines that are this process: a job is done step by step when somebody looks for events.

    Args:
        scores: a folder whose scores are taken instead of measuring.
        happens: {(job, attempt): what happens instead of its last step}.
    """

    cpus, gpus = 1, 0.0

    def __init__(self, scores=None, happens=None, slots=2, seen=None, memory=10**12):
        self.scores = None if scores is None else Store(scores)
        self.happens, self.slots, self.seen, self.memory = happens or {}, slots, seen, memory
        self.jobs, self.tried, self.needs, self.cancelled = {}, {}, [], False

    def look(self, subject, asked, tasks, need):
        return {"there": self.seen or look_once(subject, asked, tasks)}

    def refusal(self, need):
        return "" if need.total <= self.memory else "it is too large"

    def submit(self, name, order, need):
        attempt = self.tried[name] = self.tried.get(name, 0) + 1
        self.needs.append(need.total)
        self.jobs[name, attempt] = self._steps(name, attempt, order)
        return name, attempt

    def _steps(self, name, attempt, order):
        yield Started(f"machine {attempt}")
        steps = list(measure(order) if self.scores is None else self._told(order))
        if (name, attempt) not in self.happens:
            yield from steps
            yield Ended()
            return
        yield from steps[:-1]
        yield from self.happens[name, attempt]

    def _told(self, order):
        for record in self.scores.records:
            if record.scheme == order.label and record.task in order.tasks:
                yield Scored(record.to_json(), read_lines(self.scores.samples(record)))

    def events(self):
        for handle, steps in list(self.jobs.items()):
            event = next(steps)
            if isinstance(event, Ended | Lost):
                del self.jobs[handle]
            yield handle, event

    def cancel(self):
        self.cancelled = True


HERE = {}


def look_once(*asked):
    """What this process has; the same in every test."""
    if asked not in HERE:
        HERE[asked] = look(*asked)
    return HERE[asked]


@pytest.fixture(autouse=True)
def _looks_once(monkeypatch):
    monkeypatch.setattr(cluster_run, "look", look_once)


def spread(folder, pool, tasks=TASKS, schemes=SCHEMES, **options):
    told = []
    found = sweep_on(
        pool,
        Subject.of("reference"),
        load_tokenizer("reference"),
        parse_candidates(schemes),
        tasks,
        folder,
        Asked(limit=8),
        told.append,
        **options,
    )
    assert pool.cancelled
    return found, told


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial") / "results"
    models = Models("reference", keep=True)
    candidates = parse_candidates(SCHEMES)
    sweep(models, load_tokenizer("reference"), candidates, TASKS, folder, Settings(limit=8))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spread") / "results"
    return folder, *spread(folder, Here())


def test_same_records_samples_and_sizes_as_one_after_the_other(serial, whole):
    folder, found, told = whole
    assert results_of(folder) == results_of(serial)
    samples = sorted(path.relative_to(serial) for path in serial.glob("samples/**/*.jsonl"))
    assert len(samples) == 9
    assert all((folder / path).read_bytes() == (serial / path).read_bytes() for path in samples)
    assert read_results(folder).sizes == read_results(serial).sizes
    assert [each.done for each in told] == list(range(1, 10)) and {each.total for each in told} == {9}
    assert found.swept.failures == {} and {each.node for each in told} == {"machine 1"}


def test_second_run_starts_no_job(whole, tmp_path):
    before = (whole[0] / "records.jsonl").read_bytes()
    found, told = spread(whole[0], Here())
    assert found.jobs == () and len(told) == 9 and not any(each.is_new for each in told)
    assert (whole[0] / "records.jsonl").read_bytes() == before


def test_results_of_one_after_the_other_are_known(serial):
    assert spread(serial, Here())[0].jobs == ()


def test_a_lost_job_is_begun_again_without_what_it_had_measured(serial, tmp_path):
    lost = {("KV2 · trust", 1): [Lost("its machine is gone")]}
    tasks = TASKS[1:]
    notes = []
    found, _ = spread(tmp_path, Here(serial, lost), tasks, ["KV2"], tell=notes.append)
    assert found.swept.failures == {} and len(results_of(tmp_path)) == 4
    (job,) = [job for job in found.jobs if job.job == "KV2 · trust"]
    assert job.nodes == ["machine 1", "machine 2"] and job.lost == ["its machine is gone"]
    assert notes == ["KV2 · trust was lost on machine 1 and is begun again: its machine is gone"]


def test_without_retries_a_lost_job_is_a_failure_and_no_silent_hole(serial, tmp_path):
    lost = {("KV2 · trust", 1): [Lost("its machine is gone")]}
    found, _ = spread(tmp_path, Here(serial, lost), ["mini_ethics"], retries=0)
    assert found.swept.failures == {
        "KV2": "KV2 · trust: lost on machine 1 after 1 attempt, and no retries: its machine is gone"
    }
    assert results_of(tmp_path).keys() == {("FP16", "mini_ethics"), ("W4", "mini_ethics")}


def test_a_machine_that_is_always_lost_ends_it(serial, tmp_path):
    lost = {("KV2 · trust", attempt): [Lost("gone")] for attempt in range(1, 9)}
    found, _ = spread(tmp_path, Here(serial, lost), ["mini_ethics"], retries=2)
    assert "on machine 1, machine 2, machine 3 after 3 attempts: gone" in found.swept.failures["KV2"]


def test_a_job_that_had_too_little_memory_asks_for_more(serial, tmp_path):
    pool = Here(serial, {("KV2 · trust", 1): [Lost("killed for memory", no_memory=True)]}, slots=1)
    spread(tmp_path, pool, ["mini_ethics"], ["KV2"])
    assert len(pool.needs) == 3 and pool.needs[2] == pytest.approx(1.5 * pool.needs[1])


def test_an_error_of_ours_is_not_tried_again(serial, tmp_path):
    failed = {("KV2 · trust", 1): [Failed("ConfigError: that cannot be", again=False), Ended()]}
    found, _ = spread(tmp_path, Here(serial, failed), ["mini_ethics"])
    assert found.swept.failures == {"KV2": "KV2 · trust: ConfigError: that cannot be (on machine 1)"}
    assert len([job for job in found.jobs if job.job.startswith("KV2")]) == 1


def test_an_out_of_memory_error_is_tried_again(serial, tmp_path):
    failed = {("KV2 · trust", 1): [Failed("OutOfMemoryError: CUDA", again=True), Ended()]}
    found, _ = spread(tmp_path, Here(serial, failed), ["mini_ethics"], ["KV2"])
    assert found.swept.failures == {} and found.jobs[-1].nodes == ["machine 1", "machine 2"]


def test_nothing_without_the_float_model(serial, tmp_path):
    failed = {("FP16 · trust", 1): [Failed("OSError: no disk", again=False), Ended()]}
    with pytest.raises(ModelError, match=r"float model could not be measured: .*OSError: no disk \(on machine 1\)"):
        spread(tmp_path, Here(serial, failed), ["mini_ethics"])


def test_a_score_that_comes_twice_is_kept_once(serial, tmp_path):
    """A machine that was given up says its last word after another one has done its work."""
    pool = Here(serial)
    steps = pool._steps

    def twice(name, attempt, order):
        for event in steps(name, attempt, order):
            yield event
            if isinstance(event, Scored):
                yield event

    pool._steps = twice
    _, told = spread(tmp_path, pool, ["mini_ethics"])
    assert len(results_of(tmp_path)) == 3 == len(told)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (Failed("CheckpointError: there is no folder", again=False), "there: CheckpointError: there is no folder"),
        ({"revision": "files:000"}, "there: its model is files:000, and here it is files:"),
        ({"versions": {"torch": "1.0"}}, "torch 1.0, and here 2."),
        ({"asks": {"mini_ethics": {"task": "another"}}}, "other questions for mini_ethics"),
    ],
)
def test_machines_that_differ_are_refused_by_name(tmp_path, seen, said):
    if isinstance(seen, dict):
        seen = replace(look(Subject.of("reference"), Asked(limit=8), ("mini_ethics",)), **seen)
        assert isinstance(seen, Seen)
    pool = Here(seen=seen)
    with pytest.raises(CheckpointError, match="1 of 1 machines cannot take part") as refused:
        spread(tmp_path, pool, ["mini_ethics"])
    assert said in str(refused.value) and not pool.tried and pool.cancelled
    assert not (tmp_path / "records.jsonl").exists()


def test_a_score_from_other_files_is_not_kept(tmp_path):
    """A machine that came later, and was not looked at."""
    record = record_of("FP16", "mini_ethics", [1.0, 0.0], model="reference", revision="files:000").to_json()
    pool = Here(happens={("FP16 · trust", 1): [Scored(record, [])]})
    with pytest.raises(CheckpointError, match="machine 1 measured FP16 mini_ethics with other files or libraries"):
        spread(tmp_path, pool, ["mini_ethics"])
    assert not (tmp_path / "records.jsonl").exists()


def test_a_model_that_fits_nowhere_is_refused_at_once(tmp_path):
    with pytest.raises(ModelError, match="the float model cannot be measured: it is too large"):
        spread(tmp_path, Here(memory=10**6), ["mini_ethics"])


def test_a_scheme_that_fits_nowhere_is_a_failure(serial, tmp_path, monkeypatch):
    def larger(shapes, config, **options):
        return Footprint(0, 0, 10**13 if config is not None and config.kv == 2 else 0, 0)

    monkeypatch.setattr(cluster_run, "footprint", larger)
    found, _ = spread(tmp_path, Here(serial), ["mini_ethics"])
    assert found.swept.failures == {"KV2": "KV2 · trust: no machine can take it: it is too large"}


def test_steps_of_a_job():
    """What travels: plain values, each step whole."""
    from qllm_hf.cluster.worker import Order

    order = Order(Subject.of("reference"), Asked(limit=4), "FP16", None, ("mini_cloze",))
    made, scored = measure(order)
    assert isinstance(made, Made) and made.size["scheme"] == "FP16"
    assert scored.record["items"] == 4 == len(scored.samples)
    (failed,) = measure(replace(order, subject=Subject("x", "/no/such/folder")))
    assert isinstance(failed, Failed) and not failed.again and failed.why.startswith("CheckpointError: ")
