"""What the documentation shows is run: the blocks of each page in order, and the `>>>` examples of every module."""

import doctest
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from qllm_hf.cli.main import app

REPO = Path(__file__).resolve().parent.parent
README = REPO / "README.md"
# {page: languages of the blocks that are run}
PAGES = {
    README: {"python", "bash"},
    REPO / "docs" / "choosing.md": {"python", "bash"},
    REPO / "docs" / "exchange.md": {"python", "bash"},
    REPO / "docs" / "evaluation.md": {"python"},
    REPO / "docs" / "methods.md": {"python", "bash"},
    REPO / "docs" / "numbers.md": {"python", "bash"},
}
PLACEHOLDER = re.compile(r"path/to/model(?![\w/-])")
# Commands of ours; installing and cloning are not for a test to do.
OURS = re.compile(r"(#.*\n|\s)*(qllm-hf|optimum-cli qllm)\b")
# A command a line, and nothing that only a shell knows: run in this process, where all is imported already. Importing
# takes longer than most of these commands.
SIMPLE = re.compile(r"((#[^\n]*|qllm-hf [^\n|&;<>$`\\*()]*)?\n)*")
FENCE = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A module may need one of these at import; it is then skipped where they are not installed.
OPTIONAL = {
    "compressed_tensors",
    "datasets",
    "evaluate",
    "gradio",
    "kernels",
    "lm_eval",
    "matplotlib",
    "optimum",
    "ray",
    "triton",
    "vllm",
}


class Block(NamedTuple):
    language: str
    code: str
    line: int  # of the first line of code, counted from 1


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks that can be run, in document order."""
    found = [
        Block(match[1], match[2], markdown.count("\n", 0, match.start(2)) + 1) for match in FENCE.finditer(markdown)
    ]
    return [block for block in found if block.language == "python" or OURS.match(block.code)]


def run_blocks(markdown: str, model: Path) -> None:
    """Runs them in the current directory, the Python ones in one namespace, as a reader would."""
    namespace: dict[str, object] = {"__name__": "readme"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for language, code, line in blocks(markdown):
        code = PLACEHOLDER.sub(str(model), code)
        if language == "python":
            # The empty lines make a traceback show the line number in the README.
            exec(compile("\n" * (line - 1) + code, str(README), "exec"), namespace)
        elif SIMPLE.fullmatch(code):
            for command in code.splitlines():
                if words := shlex.split(command, comments=True):
                    done = CliRunner().invoke(app, words[1:])
                    assert done.exit_code == 0, f"{README.name}:{line}\n{command}\n{done.output}{done.exception!r}"
        else:
            command = ["bash", "-euo", "pipefail", "-c", code]
            done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
            assert done.returncode == 0, f"{README.name}:{line}\n{code}\n{done.stdout}{done.stderr}"


def module_names() -> Iterator[str]:
    """Every module of the package. Read from disk: pkgutil would pass over a subpackage that cannot be imported."""
    root = Path(importlib.util.find_spec("qllm_hf").origin).parent
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def failed_examples(module: ModuleType, model: Path) -> list[str]:
    """The reports of doctest, one for each example that does not give what it shows."""
    reports: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(module):
        for example in test.examples:
            example.source = PLACEHOLDER.sub(str(model), example.source)
        runner.run(test, out=reports.append)
    return reports


@pytest.mark.longest
@pytest.mark.usefixtures("metrics_cache")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_run(page, stories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert {block.language for block in blocks(text)} == PAGES[page]
    run_blocks(text, stories)


@pytest.mark.parametrize("name", list(module_names()))
def test_examples_in_docstrings(name, stories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{name} needs {error.name}")
    assert not failed_examples(module, stories)


# The rest shows that a broken example is noticed, and that blocks run as described above.


def test_blocks_share_a_namespace_and_know_the_model(tmp_path):
    run_blocks("```python\nx = 'path/to/model'\n```\n\n```python\nassert x == 'there', x\n```\n", Path("there"))


def test_placeholder_is_replaced_only_where_it_is_the_whole_path():
    assert PLACEHOLDER.sub("m", "path/to/model path/to/model-w4") == "m path/to/model-w4"


def test_other_commands_are_not_run():
    markdown = "```bash\npip install x\n```\n```bash\n# note\nqllm-hf quantize m\n```\n```text\nqllm-hf\n```\n"
    assert [block.line for block in blocks(markdown)] == [5]


def test_broken_python_block_is_noticed_with_its_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks("# Title\n\n```python\nx = 1\nx / 0\n```\n", Path())
    assert caught.traceback[-1].lineno + 1 == 5


@pytest.mark.parametrize("rest", ["", " | cat", " || qllm-hf no-such-verb"])
def test_broken_bash_block_is_noticed(rest):
    with pytest.raises(AssertionError, match=r"README\.md:2"):
        run_blocks(f"```bash\nqllm-hf no-such-verb{rest}\n```\n", Path())


@pytest.mark.parametrize("rest", ["", "  # why", " | cat", " > version && qllm-hf --help"])
def test_bash_blocks_run_with_and_without_a_shell(rest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(f"```bash\n# first\nqllm-hf --version{rest}\n\nqllm-hf quantize --help\n```\n", Path())
    assert (tmp_path / "version").exists() == (">" in rest)


def test_broken_docstring_example_is_noticed():
    module = ModuleType("broken")
    module.__doc__ = ">>> 1 + 1\n2\n>>> 1 + 1\n3\n"
    (report,) = failed_examples(module, Path())
    assert "Expected:\n    3" in report
