"""`qllm-hf import`: what it says, and what `card` makes of the folder it wrote."""

import json

import pytest
from peer_checkpoints import CASES, write_checkpoint
from typer.testing import CliRunner

from qllm_hf.cli.main import app


def run(*words: object, code: int = 0):
    result = CliRunner().invoke(app, ["import", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    write_checkpoint(CASES["awq"], root / "model-awq", root / "float")
    (root / "model-awq" / "LICENSE").write_text("a licence")
    (root / "model-awq" / "README.md").write_text("a card of other weights")
    return root / "model-awq"


def test_import(source, tmp_path):
    out = tmp_path / "model"
    said = json.loads(run(source, "-o", out, "--json").stdout)
    assert (said["scheme"], said["output"], said["linear_coverage"]) == ("W4g32", str(out), 1.0)
    assert said["imported"] == {"quant_method": "awq", "made_by": "AutoAWQ"}
    assert "codes chosen by AutoAWQ, imported from awq" in said["notes"]
    assert (out / "LICENSE").read_text() == "a licence"
    assert not (out / "README.md").exists(), "it speaks of other files"
    recipe = json.loads((out / "qllm_recipe.json").read_text())
    assert recipe["command"] == ["qllm-hf", "import", "model-awq", "--output", "model"]
    card = CliRunner().invoke(app, ["card", str(out), "-o", str(tmp_path / "card.md"), "--license", "mit", "--quiet"])
    assert card.exit_code == 0, card.output
    text = (tmp_path / "card.md").read_text()
    assert "chosen by AutoAWQ and taken over from its awq checkpoint" in text
    assert "0 x 0 tokens" not in text


def test_what_is_wrong_is_one_sentence(source, tmp_path):
    assert "say where to save: -o DIR" in run(source, code=2).stderr
    assert "there is no folder" in run("owner/name", "-o", tmp_path / "a", code=1).stderr
    assert "hf download" in run("owner/name", "-o", tmp_path / "a", code=1).stderr
    assert "is a float model" in run("reference", "-o", tmp_path / "a", code=1).stderr
    assert not list(tmp_path.iterdir())
