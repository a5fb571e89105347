"""`qllm-hf recommend`: advice on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qllm_hf.cli.recommend import recommend
from qllm_hf.evaluation.record import Record
from qllm_hf.evaluation.store import Store

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(recommend)


@app.callback()
def _program() -> None:
    """A program of several commands, as the real one is."""


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, ["recommend", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def of_another(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    Store(folder).add(Record("FP16", "nlp", "mini_cloze", "acc", 0.9, 0.01, 400, 0.25, model="reference"), [])
    return folder


def test_a_page_with_one_choice(stories):
    text = run(stories, "--abilities", "dialogue,long", "--context", "512", "--batch", 8, "--memory", "3MB").stdout
    assert "(0.26M parameters): dialogue, long context; 8 x 512 tokens in 3.00 MB" in " ".join(text.split())
    assert text.count("Choice: ") == 1
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) <= 70


def test_json_has_everything(stories):
    words = (
        "--abilities",
        "icl,sc",
        "--context",
        "2k",
        "--memory",
        "24GiB",
        "--device",
        "RTX 4090",
        "--tolerance",
        "1%",
    )
    data = json.loads(run(stories, *words, "--json").stdout)
    situation = data["situation"]
    assert (situation["context"], situation["memory_bytes"], situation["tolerance"]) == (2048, 24 * 2**30, 1)
    assert (situation["device"], situation["topics"]) == ("RTX 4090", ["icl", "sc"])
    assert data["scheme"] in {each["scheme"] for each in data["candidates"]}
    assert all(each["decode_seconds"] > 0 for each in data["candidates"])


def test_a_size_in_place_of_a_model():
    data = json.loads(run("--params", "0.5", "--abilities", "nlp", "--family", "opt", "--json").stdout)
    assert data["situation"]["family"] == "OPT"
    assert "No model was named" in data["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        ("", "say which model: MODEL, or its size as --params 7", 2),
        ("MODEL --params 7", "give one of them", 2),
        ("MODEL --moe", "--moe goes with --params", 2),
        ("--params 7 --measured DIR", "name it as MODEL", 2),
        ("--params 7 --family lama2", "family='lama2': the study has none of this name. There are OPT,", 1),
        ("--params 7 --abilities speech", "ability 'speech' is none. There are nlp,", 1),
        ("--params 7 --abilities ,", "no abilities", 1),
        ("--params 7 --device RTX9999", "there is no device 'RTX9999'", 1),
        ("--params 7 --memory 0GB", "memory '0GB': give more than 0", 1),
        ("--params 7 --memory=-4GB", "memory '-4GB': give more than 0", 1),
        ("--params 7 --memory 24", "write a unit, such as 24GB or 24GiB", 1),
        ("--params 7 --context few", "context 'few'", 1),
        ("--params 7 --batch 0", "batch=0", 1),
        ("--params 0", "params_b=0", 1),
        ("--params 7 --tolerance lots", "tolerance 'lots'", 1),
        ("MODEL --measured EMPTY", "there are no results in", 1),
        ("MODEL --measured DIR", "are of 'reference', not of", 1),
        ("./no-such-folder", "there is no folder './no-such-folder'", 1),
    ],
)
def test_what_makes_no_sense_is_one_sentence(arguments, message, code, stories, of_another, tmp_path):
    places = {"MODEL": stories, "DIR": of_another, "EMPTY": tmp_path}
    result = run(*(places.get(word, word) for word in arguments.split()), code=code)
    assert message in result.stderr
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)


def test_help_needs_no_torch(tmp_path):
    code = (
        "import sys, qllm_hf.cli.recommend\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), set(sys.modules) & {'torch', 'transformers'}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_has_examples():
    assert "qllm-hf recommend --params 7 --abilities dialogue,long" in run("--help").stdout
