"""`qllm-hf bench` as a user sees it."""

import json
import shutil

import pytest
import typer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import qllm_hf
from qllm_hf.cli.bench import bench
from qllm_hf.efficiency import run as running
from qllm_hf.efficiency.measure import run_once
from qllm_hf.evaluation.lines import CELLS
from qllm_hf.reporting.text import WIDTH

app = typer.Typer()
app.command()(bench)
SMALL = ("--batch", "1,2", "--input", "8,20", "--output", "3", "--repeats", "2")


def call(*arguments):
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def measured(stories, folder):
    """One benchmark that most tests look at."""
    return call(stories, "--schemes", "fp16,W4,W8A8,KV4,w4", *SMALL, "-o", folder / "out")


def test_a_page(measured, stories):
    assert measured.exit_code == 0
    text = measured.stdout
    assert text.startswith(f"{stories}, 260,032 parameters, float32, 3 new tokens, median of 2 runs after 1\n")
    for heading in ("Seconds and bytes", "Times as fast as FP16", "Next to what was published for W4"):
        assert heading in text
    rows = [line.split()[:3] for line in text.splitlines() if line.startswith(("FP16 ", "W4 ", "W8A8 ", "KV4 "))]
    cells = [[scheme, b, i] for scheme in ("FP16", "W4", "W8A8", "KV4") for i in ("8", "20") for b in ("1", "2")]
    assert [row for row in rows if "here" not in row] == cells + cells[4:], "FP16 has no ratio to itself"
    assert max(len(line) for line in text.splitlines()[1:]) <= WIDTH
    assert "W4, batch 2, input 20: " in measured.stderr
    assert "in turns with FP16" in measured.stderr
    assert "USDT" not in measured.stderr


def test_the_same_again_measures_nothing(measured, stories, folder, monkeypatch):
    lines = (folder / "out" / CELLS).read_text().splitlines()
    assert len(lines) == 16

    def no(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(running, "run_once", no)
    again = call(stories, "--schemes", "FP16,W4,W8A8,KV4", *SMALL, "-o", folder / "out")
    assert again.stdout == measured.stdout
    assert "16 cells are there already." in again.stderr
    assert (folder / "out" / CELLS).read_text().splitlines() == lines


def test_other_settings_are_another_measurement(measured, stories, folder, tmp_path):
    out = shutil.copytree(folder / "out", tmp_path / "out")
    changed = call(stories, "--schemes", "KV4", *SMALL[:-1], "1", "--batch", "1", "--input", "8", "-o", out)
    assert changed.exit_code == 0
    assert "already" not in changed.stderr
    assert "median of 1 run after 1" in changed.stdout
    lines = (out / CELLS).read_text().splitlines()
    assert len(lines) == 17
    assert len(json.loads(lines[-1])["times"]["total"]) == 1


def test_json_has_what_the_page_has(measured, stories, folder):
    found = json.loads(call(stories, "--schemes", "FP16,W4", *SMALL, "-o", folder / "out", "--json").stdout)
    assert (found["params"], found["repeats"], found["hardware"]["threads"]) == (260_032, 2, "1")
    assert len(found["rows"]) == 8
    row = found["rows"][-1]
    assert (row["scheme"], row["batch"], row["input"], row["status"]) == ("W4", 2, 20, "ok")
    assert (
        row["weight_bytes"]
        == qllm_hf.report(
            AutoModelForCausalLM.from_pretrained(stories, quantization_config=qllm_hf.QllmConfig(w=4))
        ).parameter_bytes_after
    )
    assert row["kv_bytes"] == 2 * 22 * 5 * 4 * 2 * 8 * 4  # 22 tokens, 5 layers, 4 heads of 8 floats
    assert set(row["ratio_to_fp16"]) == {"prefill", "decode", "end_to_end"}
    assert row["ratio_to_fp16"]["decode"]["paired"]
    assert row["ratio_to_fp16"]["decode"]["low"] <= row["ratio_to_fp16"]["decode"]["high"]


def test_one_repeat_shows_no_spread(stories):
    text = call(stories, "--schemes", "FP16,KV8", "--batch", "1", "--input", "6", "--output", "2", "--repeats", "1")
    ratios = text.stdout.split("Times as fast as FP16")[1]
    assert "[" not in ratios
    assert "quartiles" not in ratios


def test_out_of_memory_is_an_entry(stories, monkeypatch):
    def full(model, ids, case):
        if case.batch == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.")
        return run_once(model, ids, case)

    monkeypatch.setattr(running, "run_once", full)
    result = call(stories, "--schemes", "FP16,W8", "--batch", "1,2", "--input", "6", "--output", "2")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["FP16", "2", "6", "-", "-", "-", "-", "-", "OOM", "-", "-"] in lines
    assert "W8, batch 2, input 6: OOM, memory ran out during a run" in result.stderr


def test_no_memory_for_the_weights_is_predicted(stories, monkeypatch):
    monkeypatch.setattr(running, "available_bytes", lambda device: 700_000)
    result = call(stories, "--schemes", "FP16,W4", "--batch", "1", "--input", "4", "--output", "2", "--json")
    rows = {row["scheme"]: row for row in json.loads(result.stdout)["rows"]}
    assert rows["FP16"]["status"] == "oom_predicted"
    assert rows["FP16"]["reason"] == "the weights alone take 1,040,128 bytes"
    assert (rows["W4"]["status"], rows["W4"]["ratio_to_fp16"]) == ("ok", {})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--schemes", "FP16,W9"], 1, "allowed are 2, 3, 4"),
        (["--schemes", "W4,nonsense"], 1, "'nonsense' is not understood"),
        (["--schemes", " , "], 2, "--schemes names none"),
        (["--batch", "0"], 2, "--batch '0': give one or more positive numbers"),
        (["--batch", "1,x"], 2, "--batch '1,x'"),
        (["--input", "-4"], 2, "--input '-4'"),
        (["--input", ""], 2, "--input ''"),
        (["--input", "512"], 1, "512 tokens of input and 32 of output exceed the 512 positions"),
        (["--output", "1"], 2, "--output"),
        (["--repeats", "0"], 2, "--repeats"),
        (["--device-map", "cuda"], 2, "no GPU that torch can use"),
    ],
)
def test_what_cannot_be(stories, arguments, code, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    small = ["--schemes", "W4", "--batch", "1", "--input", "8"]
    result = call(stories, *small, *arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_packed_checkpoints_are_refused(stories, tmp_path):
    model = qllm_hf.quantize_(AutoModelForCausalLM.from_pretrained(stories), "W4")
    model.save_pretrained(tmp_path / "packed")
    result = call(tmp_path / "packed", *SMALL)
    assert result.exit_code == 1
    assert "is quantized already (W4). Give the float model" in result.stderr


def test_a_file_in_the_place_of_the_folder(stories, tmp_path):
    (tmp_path / "file").write_text("")
    result = call(stories, *SMALL, "-o", tmp_path / "file")
    assert (result.exit_code, "is a file" in result.stderr) == (1, True)


def test_quiet_says_only_the_answer(stories):
    result = call(stories, "--schemes", "W8", "--batch", "1", "--input", "4", "--output", "2", "--repeats", "1", "-q")
    assert result.stderr == ""
    assert "Times as fast" not in result.stdout
