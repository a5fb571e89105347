"""`qllm-hf published`: the published numbers on the command line."""

import csv
import io
import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from qllm_hf.cli.published import published
from qllm_hf.published.query import published as look_up

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(published)


@app.callback()
def _program() -> None:
    """A program of several commands, as the real one is."""


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, ["published", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_without_a_question_it_says_what_there_is():
    lines = run().stdout.splitlines()
    assert lines[0] == "5,910 published scores of 46 models under 20 schemes"
    assert len(lines) == 1 + 1 + 15 + 1
    assert max(map(len, lines)) <= 100


def test_a_question_gets_values_losses_flags_and_a_summary():
    text = run("--ability", "long_context", "--scheme", "kv4", "--subset", "length=16k").stdout
    assert text.startswith("longeval_lines, length=16k, accuracy, fraction\n")
    (line,) = (line for line in text.splitlines() if line.startswith("LongChat-7B"))
    assert line.split() == ["LongChat-7B", "KV4", "0.106", "0.398", "73.4"]
    assert "A08 excluded: FP16 is far below" in text
    assert text.endswith(
        "7 models: mean loss 30.1 %, median 25.0, from 1.8 to 73.4; 1 within 2 %; 1 excluded value left out\n"
    )
    assert max(map(len, text.splitlines())) <= 100


def test_several_schemes_are_summed_up_one_by_one():
    text = run("--benchmark", "mt_bench", "--scheme", "W4,KV4", "--tolerance", "5").stdout
    table = [line.split() for line in text.split("Loss in percent")[1].splitlines()[1:]]
    assert table[0][-3:] == ["within", "5", "%"]
    assert [(row[2], row[3], row[-1]) for row in table[1:]] == [("W4", "13", "9"), ("KV4", "12", "9")]


def test_long_answers_are_cut_and_all_prints_them():
    assert "... and 85 more rows" in run("--benchmark", "lambada").stdout
    assert "more rows" not in run("--benchmark", "lambada", "--all").stdout


def test_json_has_rows_and_summary():
    data = json.loads(run("--benchmark", "gsm8k", "--scheme", "W4", "--params", "13:", "--json").stdout)
    assert [row["model"] for row in data["rows"]] == list(
        look_up(benchmark="gsm8k", scheme="W4", params=(13, None)).models
    )
    (summary,) = data["summary"]
    assert (summary["benchmark"], summary["scheme"], summary["models"]) == ("gsm8k", "W4", 5)
    assert len(json.loads(run("--json").stdout)["rows"]) == 5910


def test_csv_can_be_read_again():
    rows = list(csv.DictReader(io.StringIO(run("--model", "ChatGLM3-6B", "--ability", "long", "--csv").stdout)))
    assert len(rows) == len(look_up(model="ChatGLM3-6B", ability="long"))
    assert rows[0]["flags"] == "A08"
    assert list(csv.DictReader(io.StringIO(run("--params", "300:", "--csv").stdout))) == []


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        ("--family lama2", "error: family='lama2': the study has none of this name. There are OPT,", 1),
        ("--model LLaMA2-7C", "Did you mean 'LLaMA2-7B'?", 1),
        ("--scheme W5", "nothing was published for it. There are FP16, W8", 1),
        ("--ability speech", "There are nlp, emergent, trust, dialogue, long.", 1),
        ("--params 7", "write FROM:TO in billions", 2),
        ("--params 13:6", "from below to", 1),
        ("--params :", "write FROM:TO in billions", 2),
        ("--csv --json", "choose one", 2),
        ("--model ,", "--model is empty", 2),
        ("--tolerance -1", "--tolerance", 2),
    ],
)
def test_bad_questions(arguments, message, code):
    result = run(*arguments.split(), code=code)
    assert message in result.stderr
    assert result.stdout == ""


def test_a_question_without_an_answer_is_no_error():
    assert run("--benchmark", "gsm8k", "--subset", "round1").stdout == "no published value\n"


def test_looking_up_needs_no_torch(tmp_path):
    code = (
        "import sys, qllm_hf.cli.published, qllm_hf.published\n"
        "assert len(qllm_hf.published(scheme='KV4')) == 514\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
