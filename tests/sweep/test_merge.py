"""Parts of a sweep become one: every score once, and nothing where two parts contradict each other."""

import json
import shutil

import pytest
from made_results import add, add_size
from typer.testing import CliRunner

from qllm_hf.cli.main import app
from qllm_hf.errors import CheckpointError, QllmWarning
from qllm_hf.evaluation.store import Store
from qllm_hf.loading import load_tokenizer
from qllm_hf.lock import beside
from qllm_hf.results import read_results, write_command
from qllm_hf.sweep.merge import merge
from qllm_hf.sweep.models import Models
from qllm_hf.sweep.run import Settings, sweep
from qllm_hf.sweep.schemes import parse_candidates

VALUES = [1.0, 0.0, 1.0, 1.0]


@pytest.fixture
def parts(tmp_path):
    """FP16 in one folder, W4 in another, both on two tasks."""
    made = []
    for scheme in ("W4", "FP16"):
        folder = tmp_path / f"part-{scheme}"
        for task in ("mini_cloze", "mini_ethics"):
            add(folder, scheme, task, VALUES)
        add_size(folder, scheme)
        write_command(folder, f"qllm-hf sweep --schemes {scheme}")
        made.append(folder)
    return made


def test_float_model_first_and_everything_once(parts, tmp_path):
    out = tmp_path / "out"
    found = merge(parts, out)
    assert [(record.scheme, record.task) for record in Store(out).records] == [
        ("FP16", "mini_cloze"),
        ("FP16", "mini_ethics"),
        ("W4", "mini_cloze"),
        ("W4", "mini_ethics"),
    ]
    assert found == read_results(out) and set(found.sizes) == {"FP16", "W4"} and len(found.commands) == 2
    assert found.change("W4", "mini_cloze").paired
    assert not list(tmp_path.glob(".*"))


def test_the_same_score_twice_is_kept_once(parts, tmp_path):
    add(parts[0], "FP16", "mini_cloze", VALUES, date="2027-01-01", seconds=9.0, hardware={"device": "another"})
    assert len(merge(parts, tmp_path / "out").records) == 4


@pytest.mark.parametrize(
    ("scheme", "changes", "said"),
    [
        ("FP16", {"values": [0.0, 0.0, 1.0, 1.0]}, r"FP16 mini_cloze is in '.*part-W4' and in .*value 0.5 and 0.75"),
        ("FP16", {"limit": 10}, r"FP16 mini_cloze is in .*limit 10 and None"),
        ("FP16", {"quantization": {"quant_method": "qllm"}}, "quantization"),
        (
            "W8",
            {"quantization": {"bits": 8}, "data": {"digest": "other"}},
            r"asked alike: W4 in .* and W8 in .* have data",
        ),
        ("W8", {"shots": 3}, r"not asked alike: W4 in '.*part-W4' and W8 in '.*part-W4' have shots 0 and 3"),
        ("W8", {"model": "somebody/else"}, "are of 2 models"),
    ],
)
def test_contradictions_are_refused_by_name(parts, tmp_path, scheme, changes, said):
    values = changes.pop("values", VALUES)
    add(parts[0], scheme, "mini_cloze", values, **changes)
    with pytest.raises(CheckpointError, match=said):
        merge(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_scheme_is_one_model(parts, tmp_path):
    third = tmp_path / "third"
    add(third, "W4", "mini_robustness", VALUES, quantization={"quant_method": "qllm", "modules_to_not_convert": ["x"]})
    with pytest.raises(CheckpointError, match=r"W4 is quantized in another way in '.*third' .*modules_to_not_convert"):
        merge([*parts, third], tmp_path / "out")


def test_parts_of_two_models_are_refused(parts, tmp_path):
    other = tmp_path / "other"
    add(other, "W4", "mini_cloze", VALUES, revision="files:999")
    with pytest.raises(CheckpointError, match="Only parts of one sweep can be merged"):
        merge([*parts, other], tmp_path / "out")


def test_other_libraries_are_a_warning(parts, tmp_path):
    add(parts[0], "W8", "mini_cloze", VALUES, versions={"qllm_hf": "0", "torch": "3"})
    with pytest.warns(QllmWarning, match=r"different libraries.*torch 2 \(part-W4\), 3 \(part-W4\)"):
        merge(parts, tmp_path / "out")


def test_a_folder_that_holds_something_is_not_written_to(parts, tmp_path):
    with pytest.raises(CheckpointError, match="is not empty"):
        merge(parts, parts[1])
    with pytest.raises(CheckpointError, match="there are no results in"):
        merge([*parts, tmp_path / "nothing"], tmp_path / "out")
    (tmp_path / "out").mkdir()
    assert merge(parts, tmp_path / "out").schemes == ("FP16", "W4")


def test_the_same_again_is_taken_as_it_is(parts, tmp_path):
    """A command that was stopped while it wrote the report can be given again."""
    out = tmp_path / "out"
    first = merge(parts, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    beside(out).touch()  # of a merge that was killed between its last rename and its end
    assert merge(parts, out).records == first.records
    assert not beside(out).exists()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    add(parts[1], "W8", "mini_cloze", VALUES)
    with pytest.raises(CheckpointError, match="is not empty"):
        merge(parts, out)
    add(out, "W8", "mini_cloze", [1.0 - value for value in VALUES])
    with pytest.raises(CheckpointError, match="is not empty"):
        merge(parts, out)


def test_a_kill_leaves_no_half_folder(parts, tmp_path, monkeypatch):
    def dies(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("qllm_hf.sweep.merge.write_size", dies)
    with pytest.raises(KeyboardInterrupt):
        merge(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


TASKS = ["mini_cloze", "mini_ethics"]


def swept(folder, schemes, **options):
    models = Models("reference", keep=True)
    candidates = parse_candidates(schemes, **options)
    return sweep(models, load_tokenizer("reference"), candidates, TASKS, folder, Settings(limit=6))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "results"
    swept(folder, ["W4", "KV2"])
    return folder


def test_parts_that_were_measured_apart_are_the_whole(whole, tmp_path):
    """Each scheme alone, the float model too; merged, they are what one sweep measures."""
    for scheme in ("KV2", "FP16", "W4"):
        found = swept(tmp_path / scheme, [scheme], baseline=False)
        assert found.failures == {} and found.results.schemes == (scheme,)
    result = CliRunner().invoke(
        app,
        ["merge", *(str(tmp_path / scheme) for scheme in ("KV2", "FP16", "W4")), "-o", str(tmp_path / "out"), "--json"],
    )
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["records"]) == 6

    def results_of(folder):
        return {(record.scheme, record.task): record.result for record in Store(folder).records}

    assert results_of(tmp_path / "out") == results_of(whole)
    assert read_results(tmp_path / "out").sizes == read_results(whole).sizes
    for path in whole.glob("samples/**/*.jsonl"):
        assert (tmp_path / "out" / path.relative_to(whole)).read_bytes() == path.read_bytes()


def test_without_the_float_model_there_is_no_report(parts, tmp_path):
    result = CliRunner().invoke(app, ["merge", str(parts[0]), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "FP16 is in no part" in result.stderr and not (tmp_path / "out" / "report.html").exists()
    shutil.rmtree(tmp_path / "out")
    result = CliRunner().invoke(app, ["merge", *map(str, parts), "-o", str(tmp_path / "out")])
    assert (tmp_path / "out" / "report.html").exists() and "report in" in result.stdout
