"""`qllm-hf quantize` with calibration: what it writes works, and what is wrong is said in one sentence."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from qllm_hf import builtin
from qllm_hf.cli.main import app
from qllm_hf.methods import engine
from qllm_hf.nn import PackedLinear


def run(*arguments: object, code: int = 0):
    """The result of one command, in this process; its exit code is checked."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def calibrated(out: Path, *arguments: object, model: object = "reference", code: int = 0):
    options = ("--scheme", "W3", "--method", "gptq", "--calibration", "curriculum", "--samples", 4, "--seqlen", 64)
    return run("quantize", model, *options, "-o", out, *arguments, code=code)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    options = ("--scheme", "W3", "--method", "gptq", "--calibration", "curriculum", "--samples", 4)
    run("quantize", "reference", *options, "-o", folder / "out", "--quiet")
    return folder / "out"


def test_a_calibrated_model_is_saved_with_what_it_was_made_from(out):
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["method"] == "gptq"
    assert config["calibration"].items() >= {"source": "curriculum", "samples": 4, "seqlen": 512}.items()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert any(isinstance(module, PackedLinear) for module in model.modules())


def test_the_work_folder_is_gone_afterwards(out):
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_calibrated_model_writes_text(out):
    written = run("generate", out, "Once upon a time", "--max-new-tokens", 8, "--quiet").stdout
    assert written.startswith("Once upon a time")
    assert len(written.split()) > 6


def test_info_and_json_say_the_method(tmp_path):
    result = calibrated(tmp_path / "out", "--json", "--quiet")
    assert json.loads(result.stdout)["output"] == str(tmp_path / "out")
    assert json.loads(run("info", tmp_path / "out", "--json").stdout)["scheme"] == "W3"


def test_options_of_the_method_arrive(tmp_path):
    calibrated(tmp_path / "out", "--method-option", "damping=0.05", "--method-option", "act_order=false")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["method_options"] == {"damping": 0.05, "act_order": False}


def test_a_run_that_was_stopped_is_finished_by_the_same_command(tmp_path, monkeypatch):
    quantize_block, begun = engine._quantize_block, []

    def stopping(run, index):
        if index == 1 and len(begun) == 1:
            raise KeyboardInterrupt
        begun.append(index)
        return quantize_block(run, index)

    monkeypatch.setattr(engine, "_quantize_block", stopping)
    with pytest.raises((AssertionError, KeyboardInterrupt)):
        calibrated(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".out.calibration"]
    message = calibrated(tmp_path / "out", "--samples", 3, code=1).stderr
    assert "differs in calibration" in message
    assert "--restart" in message
    begun.append(0)
    calibrated(tmp_path / "out")
    assert begun[2] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    calibrated(tmp_path / "again", "--restart")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all((first[name] == second[name]).all() for name in first)


def refused(*arguments: object, out: Path, code: int = 1) -> str:
    message = run("quantize", "reference", "--scheme", "W4", "-o", out / "out", *arguments, code=code).stderr
    assert "Traceback" not in message
    assert list(out.iterdir()) == [], "nothing is left behind"
    return message


CURRICULUM = ("--calibration", "curriculum", "--samples", "2")


def test_a_method_without_text_is_refused(tmp_path):
    assert "none was given" in refused("--method", "gptq", out=tmp_path)


def test_an_unknown_method_is_refused(tmp_path):
    message = refused("--method", "gtpq", *CURRICULUM, out=tmp_path)
    assert "method='gtpq': allowed are rtn, awq" in message
    assert "Did you mean 'gptq'" in message


def test_an_option_without_a_value_is_refused(tmp_path):
    message = refused("--method", "gptq", "--method-option", "damping", *CURRICULUM, out=tmp_path, code=2)
    assert "--method-option 'damping': write NAME=VALUE" in message


def test_an_unknown_option_is_refused(tmp_path):
    message = refused("--method", "gptq", "--method-option", "dampning=1", *CURRICULUM, out=tmp_path)
    assert "'dampning' is no option of method 'gptq'" in message
    assert "Did you mean 'damping'" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--calibration", "missing.txt"), "there is no file 'missing.txt'"),
        ((*CURRICULUM, "--method-option", "damping=-1"), "damping=-1: give a number from 0.0 to 10.0"),
        (("--calibration", "curriculum", "--samples", "-1"), "samples=-1: give a positive number"),
    ],
)
def test_text_and_values_that_cannot_be_are_refused(tmp_path, arguments, message):
    assert message in refused("--method", "gptq", *arguments, out=tmp_path)


def test_blocks_that_are_too_long_are_refused_and_shorter_ones_taken_then(tmp_path):
    assert "the model reads 2048. Give seqlen=2048" in calibrated(tmp_path / "out", "--seqlen", 4096, code=1).stderr
    calibrated(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_missing_result_is_refused(tmp_path):
    assert "there is no file 'missing.pt'" in refused("--method", "awq", "--awq-result", "missing.pt", out=tmp_path)


def test_a_dry_run_reads_no_text(tmp_path):
    run("quantize", "reference", "--scheme", "W4", "--method", "gptq", "--calibration", "missing.txt", "--dry-run")


def test_the_builtin_model_stays_as_it_is(out):
    config = json.loads((Path(builtin.reference_model()) / "config.json").read_text())
    assert "quantization_config" not in config
