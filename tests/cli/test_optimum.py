"""`optimum-cli qllm ...` offers the same options as qllm-hf and gives the same answers."""

import importlib
import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from typer.models import ArgumentInfo
from typer.testing import CliRunner

from qllm_hf.cli.chat import chat
from qllm_hf.cli.demo import demo
from qllm_hf.cli.env import env
from qllm_hf.cli.generate import generate
from qllm_hf.cli.main import COMMANDS, app
from qllm_hf.cli.quickstart import quickstart
from qllm_hf.cli.serve import serve
from qllm_hf.cli.stats import stats

pytest.importorskip("optimum.commands.base", reason="needs optimum: pip install 'qllm-hf[optimum]'")

ONLY_OURS = (quickstart, demo, generate, serve, chat, stats, env)
PLUG_INS = "optimum.commands.register"
SOURCE = Path(__file__).resolve().parents[2] / "qllm_hf" / "cli" / "optimum_register" / "register_qllm.py"


def is_installed() -> bool:
    """Whether optimum-cli finds the plug-in on its own."""
    try:
        return importlib.util.find_spec(f"{PLUG_INS}.register_qllm") is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module")
def optimum_parser():
    """The parser of optimum-cli with our commands, made as optimum makes it."""
    from optimum.commands.base import RootOptimumCLICommand
    from optimum.commands.optimum_cli import register_optimum_cli_subcommand

    if is_installed():
        module = importlib.import_module(f"{PLUG_INS}.register_qllm")
    else:
        spec = importlib.util.spec_from_file_location("register_qllm", SOURCE)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    root = RootOptimumCLICommand("Optimum CLI tool", usage="optimum-cli")
    for command in module.REGISTER_COMMANDS:
        register_optimum_cli_subcommand(command, parent_command=root)
    return root.parser


@pytest.fixture
def optimum(optimum_parser, capsys):
    """What `optimum-cli qllm ...` prints on stdout."""

    def run(*words: object) -> str:
        arguments = optimum_parser.parse_args(["qllm", *map(str, words)])
        arguments.func(arguments).run()
        return capsys.readouterr().out

    return run


def qllm_hf(*words: object) -> dict:
    return json.loads(CliRunner().invoke(app, [*map(str, words), "--json", "--quiet"]).stdout)


def test_same_answers(optimum, stories, tmp_path):
    out = tmp_path / "out"
    said = json.loads(optimum("quantize", stories, "--scheme", "W4KV4", "-o", out, "--json", "-q"))
    assert json.loads(optimum("info", out, "--json")) == qllm_hf("info", out)
    assert said["file_bytes"] == qllm_hf("info", out)["file_bytes"]


def test_same_options(optimum, stories):
    words = "-s W3 --w-group-size 32 --w-symmetric --keep *.q_proj --keep layers.4 --override *.down_proj=W8 "
    words += "--dtype bfloat16 --dry-run --quantize-routers"
    said = json.loads(optimum("quantize", stories, *words.split(), "--json"))
    assert said == qllm_hf("quantize", stories, *words.split())


def test_scores_are_the_same(optimum, stories):
    words = ("evaluate", stories, "--tasks", "mini_cloze", "--limit", "3", "--scheme", "KV4")
    (said,), (expected,) = (json.loads(optimum(*words, "--json", "-q"))["records"], qllm_hf(*words)["records"])
    for record in (said, expected):
        del record["seconds"], record["date"]
    assert said == expected


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ONLY_OURS])
def test_no_option_is_forgotten(optimum_parser, command, capsys):
    with pytest.raises(SystemExit) as stop:
        optimum_parser.parse_args(["qllm", command.__name__, "--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert f"optimum-cli qllm {command.__name__}" in shown
    assert "qllm-hf" not in shown
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        _, info = typing.get_args(parameter.annotation)
        if not isinstance(info, ArgumentInfo):
            declared = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
            for name in declared or [f"--{parameter.name.replace('_', '-')}"]:
                assert name in shown, name
    assert "--json" in shown


@pytest.mark.parametrize(("words", "code"), [(("info", "./nowhere"), 1), (("quantize", "MODEL"), 2), (("info",), 2)])
def test_exit_codes(optimum, stories, words, code, capsys):
    with pytest.raises(SystemExit) as stop:
        optimum(*(stories if word == "MODEL" else word for word in words))
    assert stop.value.code == code
    assert "Traceback" not in capsys.readouterr().err


def test_optimum_cli_finds_the_commands(stories, tmp_path):
    """The real program. Where the package is not installed, the plug-in is put where an install would put it."""
    environment = dict(os.environ)
    if not is_installed():
        folder = tmp_path / "site" / Path(*PLUG_INS.split("."))
        folder.mkdir(parents=True)
        shutil.copy(SOURCE, folder)
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "qllm", "info", str(stories), "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["elements"] == 260_032
