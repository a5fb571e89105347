"""Cells are measured in turns with the float model, survive a lack of memory and a kill, and are never made up."""

import gc
import weakref

import pytest
import torch
from tiny_models import float_model

import qllm_hf
from qllm_hf.efficiency import run as running
from qllm_hf.efficiency.cells import BASELINE, Case, Cells
from qllm_hf.efficiency.measure import Run
from qllm_hf.efficiency.run import Bench, Settings, cases_of
from qllm_hf.errors import ConfigError, ModelError
from qllm_hf.native import is_there

CASES = [Case(1, 6, 3), Case(2, 12, 3)]
WEIGHTS = {"FP16": 400, "W4": 100, "KV4": 400}
CPU = torch.device("cpu")
FULL = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."


@pytest.fixture
def seen(monkeypatch):
    """Runs that are counted and take no time: (scheme, batch), in order. `seen.full` says which have no memory."""

    class Seen(list):
        full = staticmethod(lambda scheme, case: False)

    found = Seen()
    found.loads = []

    def run_once(model, ids, case):
        found.append((model.scheme, case.batch))
        if found.full(model.scheme, case):
            raise RuntimeError(FULL)
        return Run(0.1, 0.01, 0.2, 77)

    monkeypatch.setattr(running, "run_once", run_once)
    monkeypatch.setattr(running, "check_model", lambda model, scheme: None)
    monkeypatch.setattr(running, "peak_of", lambda device, call: (call(), 5))
    monkeypatch.setattr(running, "available_bytes", lambda device: 10**6)

    class Appetite:
        of = classmethod(lambda cls, model, longest: cls())

        def bytes(self, case):
            return 10 * case.batch

    monkeypatch.setattr(running, "Appetite", Appetite)
    return found


@pytest.fixture
def make(seen):
    """Makes a Bench with models that are there at once."""

    def bench(folder=None, repeats=2, warmup=1, tell=lambda cell: None, made=None):
        def load(scheme):
            seen.loads.append(scheme)
            model = float_model("llama") if scheme == BASELINE else qllm_hf.quantize_(float_model("llama"), scheme)
            model.scheme = scheme
            return model

        return Bench(load, WEIGHTS, Cells(folder, made or {}), Settings(repeats, warmup), CPU, tell)

    return bench


def test_runs_stand_in_turns_and_who_is_first_alternates(seen, make):
    cells = make(repeats=3).run(["W4", "FP16"], CASES[:1])
    # one run for the memory, one to warm up, three that count; then the same in pairs
    assert [scheme for scheme, _ in seen] == ["FP16"] * 5 + [
        "W4",
        "W4",
        "FP16",
        *("FP16", "W4", "W4", "FP16"),
        "FP16",
        "W4",
    ]
    assert [cell.scheme for cell in cells] == ["FP16", "W4"]
    float_cell, cell = cells
    assert (float_cell.baseline, len(cell.baseline.total), len(cell.times.total)) == (None, 3, 3)
    assert seen.loads == ["FP16", "W4"], "the float model stays"
    assert cell.kv_bytes == 77
    assert cell.implementations == ("cpu" if is_there() else "dequantize",)
    assert cell.peak_bytes == cell.weight_bytes + 5 < float_cell.peak_bytes


def test_without_the_float_model_there_are_no_pairs(seen, make):
    cells = make().run(["W4", "KV4"], CASES)
    assert [(cell.scheme, cell.case.batch, cell.baseline) for cell in cells] == [
        ("W4", 1, None),
        ("W4", 2, None),
        ("KV4", 1, None),
        ("KV4", 2, None),
    ]


def test_models_that_do_not_fit_together_run_one_after_another(seen, make, monkeypatch):
    alive = weakref.WeakSet()
    bench = make()
    load = bench.load

    def counted(scheme):
        gc.collect()
        model = load(scheme)
        alive.add(model)
        assert len(alive) == 1, "the other model is still there"
        return model

    bench.load = counted
    monkeypatch.setattr(running, "available_bytes", lambda device: 420)
    # what is loaded takes none of these made-up bytes, so the check is told so
    monkeypatch.setattr(bench, "_is_too_much", lambda wanted: wanted > 420 or (wanted == 100 and len(alive) == 1))
    cells = bench.run(["FP16", "W4"], CASES)
    assert all(cell.status == "ok" and cell.baseline is None for cell in cells)


@pytest.mark.parametrize("scheme", ["FP16", "W4"])
def test_weights_that_cannot_be_loaded_are_a_cell(seen, make, scheme):
    bench = make()
    load = bench.load

    def full(name):
        if name == scheme:
            raise MemoryError
        return load(name)

    bench.load = full
    status = {(cell.scheme, cell.case.batch): cell.status for cell in bench.run(["FP16", "W4"], CASES)}
    other = "W4" if scheme == "FP16" else "FP16"
    assert status == {(scheme, 1): "oom", (scheme, 2): "oom", (other, 1): "ok", (other, 2): "ok"}


def test_a_run_without_memory_is_a_cell_and_the_rest_goes_on(seen, make):
    seen.full = lambda scheme, case: scheme == "KV4" and case.batch == 2
    told = []
    cells = make(tell=told.append).run(["FP16", "KV4", "W4"], CASES)
    assert [(c.scheme, c.case.batch) for c in cells if c.status != "ok"] == [("KV4", 2)]
    assert [(c.scheme, c.case.batch) for c in told] == [(c.scheme, c.case.batch) for c in cells]
    assert next(c for c in cells if c.scheme == "W4").baseline is not None, "the next scheme has pairs again"


def test_where_only_the_pair_is_too_much_the_scheme_runs_alone(seen, make):
    def full(scheme, case):
        in_pairs = any(name == "W4" for name, _ in seen)
        return scheme == "FP16" and in_pairs

    seen.full = full
    cells = {(c.scheme, c.case.batch): c for c in make().run(["FP16", "W4"], CASES)}
    assert {c.status for c in cells.values()} == {"ok"}
    assert cells["W4", 1].baseline is None
    assert cells["W4", 1].times is not None


def test_where_the_float_model_had_no_memory_it_is_not_tried_again(seen, make):
    seen.full = lambda scheme, case: scheme == "FP16" and case.batch == 2
    cells = {(c.scheme, c.case.batch): c for c in make().run(["FP16", "W4"], CASES)}
    assert (cells["FP16", 2].status, cells["W4", 2].status) == ("oom", "ok")
    assert cells["W4", 2].baseline is None
    assert cells["W4", 1].baseline is not None
    assert seen.count(("FP16", 2)) == 1


def test_what_would_not_fit_is_not_tried(seen, make, monkeypatch, tmp_path):
    monkeypatch.setattr(running, "available_bytes", lambda device: 15)
    bench = make(tmp_path)
    bench.weights = dict.fromkeys(WEIGHTS, 10)
    cells = bench.run(["FP16"], CASES)
    assert [cell.status for cell in cells] == ["ok", "oom_predicted"]
    assert cells[1].reason == "a run would take about 20 bytes beside the weights"
    assert ("FP16", 2) not in seen
    # with more memory, it is tried; what is measured is not
    monkeypatch.setattr(running, "available_bytes", lambda device: 25)
    seen.clear()
    bench = make(tmp_path)
    bench.weights = dict.fromkeys(WEIGHTS, 10)
    assert [cell.status for cell in bench.run(["FP16"], CASES)] == ["ok", "ok"]
    assert {batch for _, batch in seen} == {2}


def test_weights_that_would_not_fit_are_not_loaded(seen, make, monkeypatch):
    monkeypatch.setattr(running, "available_bytes", lambda device: 200)
    cells = make().run(["FP16", "W4"], CASES)
    assert [(cell.scheme, cell.status) for cell in cells] == [
        ("FP16", "oom_predicted"),
        ("FP16", "oom_predicted"),
        ("W4", "ok"),
        ("W4", "ok"),
    ]
    assert cells[0].reason == "the weights alone take 400 bytes"
    assert seen.loads == ["W4"]


def test_nothing_is_predicted_where_the_system_does_not_say(seen, make, monkeypatch):
    monkeypatch.setattr(running, "available_bytes", lambda device: None)
    assert {cell.status for cell in make().run(["FP16", "W4"], CASES)} == {"ok"}


def test_a_kill_costs_the_cell_it_met(seen, make, tmp_path):
    def killed(cell):
        if (cell.scheme, cell.case.batch) == ("W4", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, tell=killed).run(["FP16", "W4"], CASES)
    seen.clear()
    cells = make(tmp_path).run(["FP16", "W4"], CASES)
    assert {batch for _, batch in seen} == {2}, "only what was not there"
    assert [(c.scheme, c.case.batch, c.status) for c in cells] == [
        ("FP16", 1, "ok"),
        ("FP16", 2, "ok"),
        ("W4", 1, "ok"),
        ("W4", 2, "ok"),
    ]
    assert cells[-1].baseline is not None, "the float model came back for the pair"
    seen.clear()
    assert make(tmp_path).run(["FP16", "W4"], CASES) == cells
    assert seen == []


def test_another_machine_measures_again(seen, make, tmp_path):
    make(tmp_path, made={"threads": 1}).run(["FP16"], CASES)
    seen.clear()
    make(tmp_path, made={"threads": 2}).run(["FP16"], CASES)
    assert len(seen) == 8


def test_another_error_is_not_a_lack_of_memory(seen, make, monkeypatch):
    def broken(model, ids, case):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(running, "run_once", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        make().run(["FP16"], CASES)


def test_what_is_wrong_is_not_timed(seen, make, monkeypatch):
    def wrong(model, scheme):
        raise ModelError(f"{scheme} is wrong")

    monkeypatch.setattr(running, "check_model", wrong)
    with pytest.raises(ModelError, match="FP16 is wrong"):
        make().run(["FP16"], CASES)
    assert seen == []


def test_numbers_of_a_real_run():
    """Nothing replaced: a tiny model, its own bytes and times."""

    def load(scheme):
        model = float_model("llama")
        return model if scheme == BASELINE else qllm_hf.quantize_(model, scheme)

    bench = Bench(load, WEIGHTS, Cells(None, {}), Settings(2, 0), CPU)
    cells = {(c.scheme, c.case.batch): c for c in bench.run(["FP16", "KV4"], CASES)}
    for cell in cells.values():
        assert cell.status == "ok"
        assert all(0 < seconds < total for seconds, total in zip(cell.times.prefill, cell.times.total, strict=True))
        assert cell.peak_bytes > cell.weight_bytes
        assert cell.date
    # 14 tokens, 2 layers, 2 heads of 16 floats, keys and values
    assert cells["FP16", 2].kv_bytes == 2 * 14 * 2 * 2 * 2 * 16 * 4
    assert cells["KV4", 2].kv_bytes < cells["FP16", 2].kv_bytes / 3


@pytest.mark.gpu
def test_on_a_gpu():
    device = torch.device("cuda:0")

    def load(scheme):
        model = float_model("llama").to(device)
        return model if scheme == BASELINE else qllm_hf.quantize_(model, scheme)

    bench = Bench(load, WEIGHTS, Cells(None, {}), Settings(2, 1), device)
    huge = Case(10**6, 500, 3)
    cells = {(c.scheme, c.case): c for c in bench.run(["FP16", "W4"], [CASES[1], huge])}
    assert [cells[scheme, CASES[1]].status for scheme in ("FP16", "W4")] == ["ok", "ok"]
    assert cells["FP16", huge].status == "oom"
    assert cells["W4", CASES[1]].baseline is not None
    assert cells["W4", CASES[1]].peak_bytes > cells["W4", CASES[1]].weight_bytes


def test_cases_are_all_pairs_small_ones_first():
    assert cases_of([4, 1], [8, 2], 5, None) == [Case(1, 2, 5), Case(4, 2, 5), Case(1, 8, 5), Case(4, 8, 5)]
    assert Case(1, 8, 5).tokens == 12
    assert cases_of([1, 1], [3], 2, 5) == [Case(1, 3, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [4], 2, None), "batch='0'"),
        (([1], [4, 0], 2, None), "input='4,0'"),
        (([1], [], 2, None), "input=''"),
        (([1], [4], 1, None), "at least 2 tokens"),
        (([1], [4, 500], 32, 512), "500 tokens of input and 32 of output exceed the 512 positions .* --input 480"),
    ],
)
def test_cases_that_cannot_be(arguments, message):
    with pytest.raises(ConfigError, match=message):
        cases_of(*arguments)


@pytest.mark.parametrize("values", [{"repeats": 0}, {"warmup": -1}])
def test_settings_that_cannot_be(values):
    with pytest.raises(ConfigError, match="at least one repeat"):
        Settings(**values)
