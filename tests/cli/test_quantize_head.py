"""`--quantize-head` on the command line."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from qllm_hf.cli.main import app
from qllm_hf.nn import PackedLinear


def run(*arguments: object, code: int = 0):
    """The result of one command, in this process; its exit code is checked."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def heads(printed: str) -> list[dict]:
    return [group for group in json.loads(printed)["quantized"] if group["kind"] == "head"]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("head") / "out"
    options = ("--scheme", "W4", "--quantize-head", "--override", "lm_head=W8")
    run("quantize", "reference", *options, "-o", folder, "--quiet")
    return folder


def test_quantize(out):
    assert isinstance(AutoModelForCausalLM.from_pretrained(out).lm_head, PackedLinear)
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quantize_head"] is True
    assert "--quantize-head" in (out / "qllm_recipe.json").read_text()
    (head,) = heads(run("info", out, "--json").stdout)
    assert head["bits"] == 8
    assert run("generate", out, "Once upon a time", "--max-new-tokens", 4, "--quiet").stdout.startswith("Once upon")


def test_dry_run():
    (head,) = heads(run("quantize", "reference", "--scheme", "W4", "--quantize-head", "--dry-run", "--json").stdout)
    assert head["bits"] == 4
    assert heads(run("quantize", "reference", "--scheme", "W4", "--dry-run", "--json").stdout) == []


def test_generate():
    options = ("--max-new-tokens", 2, "--json", "--quiet")
    sizes = [
        json.loads(run("generate", "reference", "Once", "--scheme", "W4", *more, *options).stdout)["weight_bytes"]
        for more in ((), ("--quantize-head",))
    ]
    assert sizes[1] > sizes[0], "the reference model's head is tied: its packed form comes on top"


def test_evaluate(tmp_path):
    options = ("--scheme", "W4", "--tasks", "mini_stories", "--limit", 2, "--json", "--quiet")
    for head in ((), ("--quantize-head",)):
        (record, *_) = json.loads(run("evaluate", "reference", *options, *head).stdout)["records"]
        assert record["quantization"].get("quantize_head", False) == bool(head)


def test_what_cannot_be_is_said():
    wrong = run("quantize", "reference", "--scheme", "KV8", "--quantize-head", "--dry-run", code=1)
    assert "the scheme leaves weights at 16 bits" in " ".join(wrong.output.split())
    wrong = run("quantize", "reference", "--scheme", "W4", "--override", "lm_head=W8", "--dry-run", code=1)
    assert "--quantize-head" in wrong.output
