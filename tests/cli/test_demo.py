"""qllm-hf demo, up to where the server begins; tests/demo has the rest."""

import socket
import sys

import pytest
from typer.testing import CliRunner

from qllm_hf.cli.main import app
from qllm_hf.demo import app as page


def run(*arguments):
    return CliRunner().invoke(app, ["demo", *map(str, arguments)])


@pytest.fixture
def served(monkeypatch):
    """What would be served."""
    pytest.importorskip("gradio")
    calls = []
    monkeypatch.setattr(page, "launch", lambda host, **options: calls.append((host, options)))
    return calls


def test_options_reach_the_page(served, stories):
    done = run(stories, "--memory", "2GB", "--no-push", "--host", "0.0.0.0", "--port", "8080")
    assert done.exit_code == 0, done.stderr
    ((host, options),) = served
    assert list(host.offered) == ["stories260K", "reference"]
    assert host.limits.memory_bytes == host.holder.limit == 2 * 10**9
    assert not host.limits.pushes
    assert (options["server_name"], options["server_port"]) == ("0.0.0.0", 8080)


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = run()
    assert done.exit_code == 1
    assert done.stderr == "error: the page needs gradio. Run: pip install 'qllm-hf[demo]'\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such/model/here"], "there is no folder"),
        (["--memory", "much"], "much"),
        (["--results", "nowhere"], "there are no results in 'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence(served, arguments, words):
    done = run(*arguments)
    assert (done.exit_code, served) == (1, [])
    assert words in done.stderr and "Traceback" not in done.stderr


def test_a_taken_port_is_said():
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("--port", taken.getsockname()[1])
    assert done.exit_code == 1
    assert "Give another port" in done.stderr
