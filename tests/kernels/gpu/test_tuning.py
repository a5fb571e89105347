"""Configs that were measured are found again, files that are not such are ignored, and the best one is taken."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import qllm_hf  # noqa: F401  (in a source tree it knows where the kernels are)

pytest.importorskip("triton", reason="needs Triton")

import qllm_kernels
from qllm_kernels.gpu import measured, timing, tuning
from qllm_kernels.gpu.measured import ConfigError, Measured
from qllm_kernels.gpu.tunable import OPERATIONS, Operands, Operation

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
DEVICE = "Some GPU 9000"
SHAPE = {"outputs": 64, "inputs": 128, "bits": 4, "group_size": 128}


class Pair(NamedTuple):
    a: int
    b: int


def entry(size=1, a=2, b=3, shape=SHAPE):
    return Measured(dict(shape), size, {"a": a, "b": b}, 1.5, 2.5)


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    """A GPU of some name, whose configs are looked for in a folder of this test."""
    monkeypatch.setattr(measured, "_device_name", lambda index: DEVICE)
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    monkeypatch.delenv(measured.SETTING, raising=False)
    for cached in (measured._find, measured._table):
        cached.cache_clear()
    yield
    for cached in (measured._find, measured._table):
        cached.cache_clear()


def chosen(size=1, shape=SHAPE):
    return measured.find("linear", Pair, shape, size, GPU)


# Files


def test_without_a_file_there_is_no_config():
    assert chosen() is None


def test_what_was_written_is_found(tmp_path):
    path = measured.write(tmp_path, "linear", DEVICE, [entry()])
    assert path.name == "linear,device_name=Some_GPU_9000.json"
    assert chosen() == Pair(2, 3)
    assert measured.read(path, "linear", DEVICE) == [entry()]
    assert list(tmp_path.iterdir()) == [path]


def test_nearest_size_counts(tmp_path):
    measured.write(tmp_path, "linear", DEVICE, [entry(1, a=1), entry(16, a=16), entry(64, a=64)])
    found = {size: chosen(size).a for size in (1, 3, 4, 5, 16, 31, 32, 33, 10_000)}
    assert found == {1: 1, 3: 1, 4: 1, 5: 16, 16: 16, 31: 16, 32: 16, 33: 64, 10_000: 64}


def test_no_tokens_find_the_smallest_size(tmp_path):
    measured.write(tmp_path, "linear", DEVICE, [entry(4)])
    assert chosen(0) == Pair(2, 3)


@pytest.mark.parametrize("other", [{"outputs": 65}, {"bits": 3}, {"group_size": -1}])
def test_other_shape_has_no_config(tmp_path, other):
    measured.write(tmp_path, "linear", DEVICE, [entry()])
    assert chosen(shape=SHAPE | other) is None


def test_other_operation_and_device_have_no_config(tmp_path):
    measured.write(tmp_path, "linear", "Another GPU", [entry()])
    measured.write(tmp_path, "integers", DEVICE, [entry()])
    assert chosen() is None


def test_processor_has_no_configs(tmp_path):
    measured.write(tmp_path, "linear", DEVICE, [entry()])
    assert measured.find("linear", Pair, SHAPE, 1, CPU) is None


def test_writing_again_replaces_the_same_and_keeps_the_rest(tmp_path):
    measured.write(tmp_path, "linear", DEVICE, [entry(1, a=1), entry(8, a=8)])
    assert chosen(8).a == 8
    path = measured.write(tmp_path, "linear", DEVICE, [entry(8, a=9), entry(8, a=5, shape=SHAPE | {"bits": 2})])
    assert chosen(8).a == 9
    assert [(each.shape["bits"], each.size, each.config["a"]) for each in measured.read(path, "linear", DEVICE)] == [
        (2, 8, 5), (4, 1, 1), (4, 8, 9),
    ]  # fmt: skip


def test_named_folder_comes_first(tmp_path, monkeypatch):
    measured.write(tmp_path, "linear", DEVICE, [entry(a=1)])
    measured.write(tmp_path / "mine", "linear", DEVICE, [entry(a=2)])
    monkeypatch.setenv(measured.SETTING, str(tmp_path / "mine"))
    measured._find.cache_clear()
    measured._table.cache_clear()
    assert chosen().a == 2


def text(**changes):
    content = {"operation": "linear", "device_name": DEVICE, "triton": "3", "measured": [entry()._asdict()]}
    return json.dumps(content | changes)


BROKEN = {
    "nothing": "",
    "half a file": text()[:-30],
    "a list": "[]",
    "no table": text(measured=None),
    "of another device": text(device_name="NVIDIA H200"),
    "of another operation": text(operation="integers"),
    "an entry of another kind": text(measured=[1]),
    "an entry without a size": text(measured=[{"shape": SHAPE, "config": {"a": 1}, "us": 1, "default_us": 1}]),
    "an entry with more": text(measured=[entry()._asdict() | {"more": 1}]),
    "a shape of words": text(measured=[entry()._asdict() | {"shape": {"bits": "4"}}]),
    "a config of fractions": text(measured=[entry()._asdict() | {"config": {"a": 1.5, "b": 2}}]),
    "a config of zeros": text(measured=[entry()._asdict() | {"config": {"a": 0, "b": 2}}]),
    "a huge config": text(measured=[entry()._asdict() | {"config": {"a": 2**20, "b": 2}}]),
    "a size of 0": text(measured=[entry()._asdict() | {"size": 0}]),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_file_is_ignored_with_a_warning(tmp_path, content):
    path = tmp_path / measured.file_name("linear", DEVICE)
    path.write_text(content)
    with pytest.raises(ConfigError, match="linear,device_name"):
        measured.read(path, "linear", DEVICE)
    with pytest.warns(RuntimeWarning, match="measured configs are ignored"):
        assert chosen() is None
    with pytest.raises(ConfigError):
        measured.write(tmp_path, "linear", DEVICE, [entry()])  # what somebody may want to look at is not lost
    assert path.read_text() == content


def test_config_with_other_fields_is_ignored_with_a_warning(tmp_path):
    measured.write(tmp_path, "linear", DEVICE, [entry()._replace(config={"a": 1, "c": 1})])
    with pytest.warns(RuntimeWarning, match="tune again"):
        assert chosen() is None


# The search


def test_search_finds_the_best_of_each_field():
    costs = tuning.descend(Pair(1, 1), {"a": (1, 2, 4), "b": (1, 2, 4)}, lambda pair: abs(pair.a - 4) + abs(pair.b - 2))
    assert min(costs, key=costs.__getitem__) == Pair(4, 2)
    assert len(costs) < 9


def test_search_passes_what_cannot_run():
    def cost(pair):
        return math.inf if pair.a == 2 else 10 - pair.a - pair.b

    costs = tuning.descend(Pair(1, 1), {"a": (2, 4), "b": (2, 4)}, cost)
    assert min(costs, key=costs.__getitem__) == Pair(4, 4)


def operation(results, refusals=(ValueError,)):
    """One whose result depends on the config: 0 is right, None is refused."""

    def run(pair):
        if results[pair] is None:
            raise ValueError("refused")
        return torch.ones(3) + results[pair]

    return Operation((), {"a": (1, 2)}, lambda shape, size: Pair(1, 1), lambda *_: Operands(run, 1), refusals)


@pytest.mark.parametrize(("result", "best"), [(0, 2), (1e-3, 2), (0.5, 1), (math.nan, 1), (None, 1)])
def test_config_with_other_results_is_not_taken(result, best):
    results = {Pair(1, 1): 0.0, Pair(2, 1): result}
    ran = []

    def seconds(calls):
        ran.extend(calls)
        return 2.0 - 0.5 * (len(ran) > 2)  # the second config is faster

    found = tuning.tune(operation(results), SHAPE, 1, CPU, seconds)
    assert found.config["a"] == best
    assert found.default_us == 2e6
    assert len(ran) == (4 if best == 2 else 2)


def test_other_errors_are_not_hidden():
    with pytest.raises(ValueError, match="refused"):
        tuning.tune(operation({Pair(1, 1): 0.0, Pair(2, 1): None}, refusals=()), SHAPE, 1, CPU, lambda calls: 1.0)


TINY = {
    "linear": ({"outputs": 32, "inputs": 128, "bits": 4, "group_size": 128}, 2, {"BLOCK_N": (32,), "BLOCK_M": (16,)}),
    "integers": ({"outputs": 32, "inputs": 128, "bits": 4, "group_size": -1}, 2, {"BLOCK_N": (32,), "BLOCK_M": (16,)}),
    "attention": (
        {"heads": 2, "kv_heads": 1, "dim": 64, "bits": 4, "group_size": 64, "batch": 1}, 100, {"SPLITS": (1, 2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_can_be_tuned(name, tmp_path):
    shape, size, values = TINY[name]
    tunable = OPERATIONS[name]._replace(values=values)
    assert set(values) <= set(OPERATIONS[name].values)
    times = iter(range(100, 0, -1))

    def seconds(calls):
        for call in calls:
            call()
        return float(next(times))  # each config is faster than the one before

    found = tuning.tune(tunable, shape, size, CPU, seconds)
    assert found.us < found.default_us
    measured.write(tmp_path, name, DEVICE, [found])
    kind = type(tunable.default(shape, size))
    assert measured.find(name, kind, shape, size, GPU) == kind(**found.config)
    assert set(OPERATIONS[name].values) == set(kind._fields)


# Times, with a clock of our own where there is no GPU


class Clock:
    """Stands for a CUDA event: each replay takes as many milliseconds as `durations` say."""

    now = 0.0

    def __init__(self, enable_timing):
        self.at = None

    def record(self):
        self.at = Clock.now

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return other.at - self.at


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(Clock, "now", 0.0)

    def takes(durations):
        def run():
            Clock.now += next(durations)

        return run

    return takes


def test_times_are_quartiles_of_one_call(clock):
    times = timing._quartiles(clock(iter([4.0, 8.0, 12.0, 16.0, 400.0])), calls=4, replays=5, enough=1e9)
    assert times == pytest.approx((2e-3, 3e-3, 4e-3, 5))
    assert times.disturbed  # quartiles 67 % of the median apart


def test_enough_seconds_end_the_replays_but_five_are_made(clock):
    assert timing._quartiles(clock(iter([1000.0] * 30)), calls=2, replays=30, enough=2.0).replays == 5
    steady = timing._quartiles(clock(iter([1000.0] * 30)), calls=2, replays=30, enough=7.5)
    assert steady.replays == 8
    assert not steady.disturbed


def test_eager_calls_are_warmed_up_and_all_counted(clock):
    times = timing.eager_times([clock(iter([2.0] * 100)), clock(iter([4.0] * 100))], replays=6)
    assert times.median == pytest.approx(3e-3)
    assert Clock.now == 6.0 * (timing.WARM_UP + 6)


@pytest.mark.parametrize(("nbytes", "number"), [(1, 256), (10_000_000, 12), (100_000_000, 4), (0, 256)])
def test_copies_fill_twice_the_cache(monkeypatch, nbytes, number):
    class Properties:
        L2_cache_size = 60_000_000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert timing.copies(nbytes, GPU) == number


def test_shapes_of_a_command_line():
    found = tuning.shapes_of(OPERATIONS["linear"], "64x128,32x256", "4,2", "-1", 1)
    assert found[1] == {"outputs": 64, "inputs": 128, "bits": 2, "group_size": -1}
    assert len(found) == 4
    (only,) = tuning.shapes_of(OPERATIONS["attention"], "32/8x128", "4", "64", 3)
    assert only == {"heads": 32, "kv_heads": 8, "dim": 128, "bits": 4, "group_size": 64, "batch": 3}
    with pytest.raises(ValueError, match="shape '64': takes outputs x inputs"):
        tuning.shapes_of(OPERATIONS["linear"], "64", "4", "64", 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("hide", ["", 'sys.modules["triton"] = None; '])
def test_without_a_gpu_it_says_so_in_one_line(hide):
    code = f"import sys; {hide}from qllm_kernels.gpu.tuning import main; sys.exit(main(['--shapes', '64x64']))"
    sources = str(Path(qllm_kernels.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([sources, *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("nothing to tune: ")
