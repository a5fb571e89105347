"""`qllm-hf sweep` and `qllm-hf report`: one command from a model to a page."""

import json

import pytest
from made_results import add
from typer.testing import CliRunner

from qllm_hf.cli.main import app

TASKS = ("--tasks", "mini_cloze,mini_ethics,mini_calibration", "--limit", 12)


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "sweep"
    return folder, run("sweep", "reference", "--schemes", "W4,W2,KV2", *TASKS, "-o", folder)


def test_sweep_says_what_is_left(swept):
    folder, result = swept
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["bits/weight", "weights", "KV/token", "nlp", "emergent", "trust"]
    assert [line.split()[0] for line in lines[1:5]] == ["FP16", "W4", "W2", "KV2"]
    assert "PARTIAL" in result.stdout
    assert result.stdout.rstrip().endswith(f"report in {folder / 'report.html'}")
    assert (folder / "figures" / "abilities.png").exists()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<section id="recommendation">' in page and "Measured losses in %" in page


def test_every_score_is_told_while_it_runs(swept):
    _, result = swept
    told = [line for line in result.stderr.splitlines() if line.startswith("[")]
    assert len(told) == 12 and told[0].startswith("[1/12] FP16 mini_") and told[-1].startswith("[12/12] KV2 mini_")


def test_json(swept):
    folder, _ = swept
    result = run("sweep", "reference", "--schemes", "W4,W2,KV2", *TASKS, "-o", folder, "--json", "--quiet")
    said = json.loads(result.stdout)
    assert set(said) == {"folder", "report", "partial", "sizes", "recovery", "records", "failures"}
    assert len(said["records"]) == 12 and said["failures"] == {} and said["partial"] is True
    assert said["recovery"]["W4"]["nlp"]["value"] > said["recovery"]["W2"]["emergent"]["value"]
    assert said["sizes"]["W2"]["bits_per_weight"] == pytest.approx(2.19, abs=0.01)
    assert result.stderr == ""


def test_report_again(swept, tmp_path):
    folder, _ = swept
    result = run("report", folder, "-o", tmp_path / "page.html")
    assert (tmp_path / "page.html").exists() and "Report in" in result.stdout
    said = json.loads(run("report", folder, "-o", tmp_path / "page.html", "--json").stdout)
    assert len(said["figures"]) % 3 == 0 and len(said["figures"]) >= 18


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--schemes", "W99"), 1, "W99"),
        (("--schemes", "FP16"), 1, "none is given"),
        (("--schemes", "W4", "--tasks", "mini_clozze"), 1, "Did you mean 'mini_cloze'"),
        (("--schemes", "W4", "--abilities", "language"), 1, "there is no ability 'language'"),
        (("--schemes", "W3+gptq"), 1, "looks at text before it chooses codes"),
        (("--schemes", "W4", "--override", "nothing"), 2, "PATTERN=SCHEME"),
    ],
)
def test_refusals_before_anything_is_loaded(tmp_path, arguments, code, said):
    result = run("sweep", "reference", *arguments, "-o", tmp_path / "out", code=code)
    assert said in result.stderr and result.stdout == ""
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_out_is_needed():
    assert "--out" in run("sweep", "reference", code=2).stderr


def test_report_of_nothing(tmp_path):
    assert "there are no results in" in run("report", tmp_path, code=1).stderr


def test_report_of_two_models(tmp_path):
    add(tmp_path, "FP16", "mini_cloze", [1.0, 0.0])
    add(tmp_path, "W4", "mini_cloze", [1.0, 0.0], model="somebody/else")
    assert "are of 2 models" in run("report", tmp_path, code=1).stderr


def test_sweep_into_a_folder_of_another_model(tmp_path):
    add(tmp_path, "FP16", "mini_cloze", [1.0, 0.0])
    result = run("sweep", "reference", "--schemes", "W4", *TASKS, "-o", tmp_path, code=1)
    assert "Give another folder with -o" in result.stderr
