"""The first command of the README: what it prints, on the model that comes with the package."""

import json
import math
import re

import pytest
from typer.testing import CliRunner

from qllm_hf.cli.main import app
from qllm_hf.evaluation.miniature import MINIATURE
from qllm_hf.evaluation.record import ABILITIES


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def shown():
    return run("quickstart", "--schemes", "FP16, W4KV8", "--limit", 4)


@pytest.mark.slow
def test_one_table_with_all_that_was_measured(shown):
    lines = shown.stdout.split("\n")
    header = next(line for line in lines if "bits/weight" in line)
    assert header.split() == ["bits/weight", "weights", "KV/token", *ABILITIES, "perplexity", "tokens/s"]
    table = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("FP16 ", "W4KV8 ", "chance "))}
    assert list(table) == ["FP16", "W4KV8", "chance"]
    assert table["FP16"][0] == "16.00"
    assert 4 < float(table["W4KV8"][0]) < 4.5
    for cells in (table["FP16"], table["W4KV8"]):
        scores = [cell for cell in cells if "±" in cell]
        assert len(scores) == len(ABILITIES)
        assert all(re.fullmatch(r"[01]\.\d\d±\.\d\d", score) for score in scores)
    assert max(map(len, lines)) <= 110
    assert "== W4KV8 ==" in lines
    assert "  Once upon a time there was a >>>" in shown.stdout
    assert "qllm-hf quantize reference --scheme W4KV8 -o model-w4kv8" in shown.stdout


@pytest.mark.slow
def test_as_json():
    result = run("quickstart", "--schemes", "KV8", "--limit", 3, "--json", "--quiet")
    said = json.loads(result.stdout)
    (row,) = said["rows"]
    assert (said["model"], row["scheme"], result.stderr) == ("reference", "KV8", "")
    assert [record["task"] for record in row["records"]] == list(MINIATURE)
    assert {record["items"] for record in row["records"]} == {3}
    (loss,) = (record["value"] for record in row["records"] if record["metric"] == "nats_per_word")
    assert row["perplexity"] == pytest.approx(math.exp(loss))
    assert row["tokens_per_second"] > 0
    assert [text["prompt"].split("\n")[-1] for text in row["texts"]][-1] == "What colour is my kite?"


@pytest.mark.slow
def test_a_model_of_ones_own_without_a_chat_template(stories):
    said = json.loads(
        run("quickstart", stories, "--schemes", "W4", "--limit", 2, "--dtype", "float32", "--json", "--quiet").stdout
    )
    assert (said["model"], said["rows"][0]["dtype"]) == (str(stories), "float32")
    assert len(said["rows"][0]["texts"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("quickstart --schemes ,", 2, "--schemes names none"),
        ("quickstart --schemes FP16,W99", 1, "w=99: allowed are"),
        ("quickstart refrence", 1, "Did you mean 'reference'"),
        ("generate refrence", 1, "error: there is no model 'refrence'. Did you mean 'reference'"),
        ("quantize refrence -s W4 -o out", 1, "Did you mean 'reference'"),
        ("info refrence", 1, "Did you mean 'reference'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments, code, message):
    result = run(*arguments.split(), code=code)
    assert message in result.stderr
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)


def test_the_reference_model_has_a_name_everywhere(tmp_path):
    assert json.loads(run("info", "reference", "--json").stdout)["scheme"] == "FP16"
    said = json.loads(run("generate", "reference", "--max-new-tokens", 4, "--json", "--quiet").stdout)
    assert (said["prompt"], said["new_tokens"]) == ("Once upon a time", 4)
    run("quantize", "reference", "-s", "W4KV8", "-o", tmp_path / "packed", "--quiet")
    assert (
        json.loads(run("generate", tmp_path / "packed", "--max-new-tokens", 4, "--json", "--quiet").stdout)["scheme"]
        == "W4KV8"
    )
