"""A sweep measures every pair once, goes on after a kill, and notes what fails."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
from made_results import add
from measured_results import results_of

from qllm_hf.errors import CheckpointError, ModelError
from qllm_hf.evaluation.lines import read_lines
from qllm_hf.evaluation.record import Record
from qllm_hf.evaluation.store import Store
from qllm_hf.loading import load_tokenizer
from qllm_hf.results import read_results
from qllm_hf.sweep.models import Models
from qllm_hf.sweep.run import Settings, sweep
from qllm_hf.sweep.schemes import parse_candidates

TASKS = ["mini_lines_256", "mini_cloze", "mini_ethics", "mini_robustness"]
SCHEMES = ["W2", "KV2"]


def run(folder, schemes=SCHEMES, tasks=TASKS, **options):
    told = []
    models = Models("reference", keep=True)
    swept = sweep(
        models,
        load_tokenizer("reference"),
        parse_candidates(schemes, **options),
        tasks,
        folder,
        Settings(limit=10),
        told.append,
    )
    return swept, told, models


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "results"
    return folder, *run(folder)


def test_every_pair_once(whole):
    folder, swept, told, models = whole
    assert set(results_of(folder)) == {(scheme, task) for scheme in ("FP16", *SCHEMES) for task in TASKS}
    assert [each.done for each in told] == list(range(1, 13)) and {each.total for each in told} == {12}
    assert swept.failures == {} and models.reads == 1
    assert set(swept.results.sizes) == {"FP16", *SCHEMES}


def test_cheapest_task_of_each_ability_first(whole):
    _, _, told, _ = whole
    order = [(each.record.scheme, each.record.task) for each in told]
    probes = order[:9]
    assert {task for _, task in probes} == {"mini_cloze", "mini_ethics", "mini_lines_256"}
    assert [scheme for scheme, _ in probes] == ["FP16"] * 3 + ["W2"] * 3 + ["KV2"] * 3
    assert [task for _, task in order[9:]] == ["mini_robustness"] * 3


def test_sizes_are_those_of_the_models(whole):
    sizes = whole[1].results.sizes
    assert sizes["W2"].bits_per_weight == pytest.approx(2.19, abs=0.01) and sizes["W2"].coverage == 1.0
    assert sizes["FP16"].bits_per_weight == 16.0 and sizes["FP16"].weight_bytes == 2 * sizes["FP16"].elements
    assert sizes["KV2"].kv_bytes_per_token < sizes["FP16"].kv_bytes_per_token / 6
    assert sizes["KV2"].weight_bytes == sizes["FP16"].weight_bytes


def test_second_run_measures_nothing(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "again")
    before = (folder / "records.jsonl").read_bytes()
    swept, told, models = run(folder)
    assert (folder / "records.jsonl").read_bytes() == before
    assert len(told) == 12 and not any(each.is_new for each in told)
    assert models.reads == 1, "the float model alone, which says what its files are"
    assert swept.results == read_results(folder)


def test_more_schemes_and_tasks_join(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "more")
    _, told, _ = run(folder, [*SCHEMES, "W8"], [*TASKS, "mini_in_context"])
    new = {(each.record.scheme, each.record.task) for each in told if each.is_new}
    assert new == {("W8", task) for task in [*TASKS, "mini_in_context"]} | {
        (scheme, "mini_in_context") for scheme in ("FP16", *SCHEMES)
    }


def test_other_kept_layers_are_measured_again(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "kept")
    _, told, _ = run(folder, ["W2"], modules_to_not_convert=["*.layers.0.*"])
    assert {each.record.scheme for each in told if each.is_new} == {"W2"}
    last = read_results(folder)
    assert all("*.layers.0.*" in record.quantization["modules_to_not_convert"] for record in last.of("W2"))


def test_killed_sweep_goes_on(whole, tmp_path):
    """Killed without a warning in the middle, and run again: the same records as in one go."""
    folder = tmp_path / "killed"
    command = [
        *(sys.executable, "-m", "qllm_hf", "sweep", "reference", "--schemes", ",".join(SCHEMES), "--quiet"),
        *("--tasks", ",".join(TASKS), "--limit", "10", "-o", str(folder)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = folder / "records.jsonl"
    while process.poll() is None and not (records.exists() and records.read_text().count("\n") >= 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(Store(folder).records)
    assert 4 <= left < 12, "killed too late to show anything"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300)
    expected = results_of(whole[0])
    found = results_of(folder)
    assert found.keys() == expected.keys()
    for key, record in found.items():
        assert {**record, "hardware": None} == {**expected[key], "hardware": None}, key
    assert (folder / "report.html").exists()


def test_scheme_that_fails_is_noted_and_others_go_on(whole, tmp_path, monkeypatch):
    folder = shutil.copytree(whole[0], tmp_path / "fails")
    get = Models.get

    def fails(self, config):
        if config is not None and config.w == 3:
            raise ModelError("no room for three bits.\nMore about it.")
        return get(self, config)

    monkeypatch.setattr(Models, "get", fails)
    swept, _, _ = run(folder, ["W3", "W8"], ["mini_cloze", "mini_robustness"])
    assert swept.failures == {"W3": "ModelError: no room for three bits."}
    assert {record.task for record in swept.results.of("W8")} == {"mini_cloze", "mini_robustness"}


def test_folder_of_another_model_is_refused(tmp_path):
    add(tmp_path, "FP16", "mini_cloze", [1.0, 0.0])
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"holds results of 'somebody/model' .* this sweep is of 'reference'"):
        run(tmp_path)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_records_are_those_of_evaluate(whole):
    """The same fields as a single run of `evaluate`, and as JSON the same again."""
    for line in read_lines(whole[0] / "records.jsonl"):
        assert Record.from_json(line).to_json() == line
