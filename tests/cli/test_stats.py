"""`qllm-hf stats` as a user types it, on the model that comes with the package."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from qllm_hf import reference_model
from qllm_hf.cli.main import app

TEXT = ("--calibration", "curriculum", "--samples", 2, "--seqlen", 128)


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What a run prints with --json, and the folder it wrote."""
    folder = tmp_path_factory.mktemp("stats") / "new" / "folder"
    said = json.loads(run("stats", "reference", *TEXT, "-o", folder, "--plots", "--json", "--quiet").stdout)
    return said, folder


def test_json_says_where_the_numbers_are_from(written):
    said, _ = written
    assert said["format"] == 1
    assert said["model"] == "reference"
    assert said["versions"].keys() >= {"qllm_hf", "torch", "transformers", "python"}
    assert {key: said["calibration"][key] for key in ("source", "samples", "seqlen")} == {
        "source": "curriculum",
        "samples": 2,
        "seqlen": 128,
    }
    assert "Pearson" in said["definitions"]["kurtosis"]


def test_every_kind_of_tensor_in_every_block(written):
    tensors = written[0]["tensors"]
    found = {kind: {each["block"] for each in tensors if each["kind"] == kind} for kind in "WAKV"}
    assert found == {kind: set(range(5)) for kind in "WAKV"}
    assert sum(each["kind"] == "W" for each in tensors) == 35
    for each in tensors:
        assert each["kurtosis"] == pytest.approx(each["excess_kurtosis"] + 3)
        assert 0 <= each["outlier_ratio"] < 0.01
        assert each["absmax"] == max(abs(each["low"]), abs(each["high"]))
        assert each["sqnr"].keys() == {"2", "3", "4", "6", "8"}


def test_files_hold_what_was_said(written):
    said, folder = written
    assert json.loads((folder / "stats.json").read_text(encoding="utf-8")) == said
    ranges = load_file(folder / "channels.safetensors")
    assert len(ranges) == 2 * len(said["tensors"])
    for each in said["tensors"]:
        assert float(ranges[f"{each['kind']}.{each['name']}.high"].max()) == pytest.approx(each["high"])
        assert float(ranges[f"{each['kind']}.{each['name']}.low"].min()) == pytest.approx(each["low"])
    for name in ("layers.png", "channels.png"):
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_without_text_only_weights_are_seen_and_that_is_said():
    result = run("stats", "reference")
    assert "only weights (W) are looked at" in result.stderr
    assert "weights only" in result.stdout
    assert "\nW: 8, 6 and 4 bits hold in all 35 layers." in result.stdout
    assert "\nA\n" not in result.stdout


def test_two_models_are_compared_from_the_smaller_one_whatever_the_order(stories):
    orders = [("reference", stories), (stories, "reference")]
    first, second = (
        json.loads(run("stats", a, "--compare", b, *TEXT, "--json", "--quiet").stdout)["comparison"] for a, b in orders
    )
    assert first == second
    assert (first["smaller"], first["larger"]) == (str(stories), "reference")
    assert {change["kind"] for change in first["changes"]} == set("WAKV")
    for change in first["changes"]:
        assert change["as_found"] == (change["direction"] == ("rises" if change["kind"] == "A" else "falls"))
    assert "no trend" in first["conclusion"]
    assert "differ in more than their size: vocabulary (512, 1152)" in first["conclusion"]


def test_a_damaged_weight_is_named(tmp_path):
    shutil.copytree(reference_model(), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name][3, 5] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    result = run("stats", tmp_path / "model", "-o", tmp_path / "out", "--quiet", code=1)
    assert result.stderr.startswith("error: ")
    assert f"{name} holds NaN" in result.stderr
    assert not (tmp_path / "out").exists()


def test_plots_without_matplotlib_stop_before_any_work(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("stats", "reference", "-o", tmp_path / "out", "--plots", code=1)
    assert "pip install 'qllm-hf[plots]'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("reference", "--plots"), 2, "say where the plots go: -o DIR"),
        (("refrence",), 1, "Did you mean 'reference'"),
        (("reference", "--calibration", "no/such/file.txt"), 1, "there is no file"),
        (("reference", "--calibration", "curriculum", "--samples", 1, "--seqlen", 4096), 1, "the model reads 2048"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments, code, message):
    result = run("stats", *arguments, code=code)
    assert message in result.stderr
    assert "Traceback" not in result.output
