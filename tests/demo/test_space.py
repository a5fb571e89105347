"""The folder of the Space: what the Hub reads of it, and that it holds no logic of its own."""

import ast
from pathlib import Path

import pytest
import yaml

from qllm_hf.evaluation.modules import FOLDERS, module_path

SPACE = Path(__file__).resolve().parents[2] / "spaces" / "demo"
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
SPACES = [SPACE, *(Path(module_path(ability)) for ability in FOLDERS)]


@pytest.mark.parametrize("folder", SPACES, ids=lambda folder: folder.name)
def test_a_space_can_be_pushed_as_it_is(folder):
    _, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["sdk"] == "gradio"
    assert isinstance(card["sdk_version"], str) and card["sdk_version"].split(".")[0] == "6"
    assert {card["colorFrom"], card["colorTo"]} <= COLORS
    assert (folder / card["app_file"]).is_file()
    assert len(card.get("short_description", "")) <= 60
    assert body.strip()
    needed = (folder / "requirements.txt").read_text().split()
    assert any(each.startswith("qllm-hf[") for each in needed)
    assert any(each.startswith("gradio") and each.endswith(",<7") for each in needed)


@pytest.mark.parametrize("folder", SPACES, ids=lambda folder: folder.name)
def test_its_program_is_thin(folder):
    tree = ast.parse((folder / "app.py").read_text(encoding="utf-8"))
    assert len(ast.unparse(tree).splitlines()) < 40
    asked = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert all(name.startswith("qllm_hf.") for name in asked)


def test_the_demo_reads_its_variables(monkeypatch):
    monkeypatch.setenv("QLLM_DEMO_MODELS", "a/b, c/d,")
    space: dict[str, object] = {"__name__": "space"}
    exec(compile((SPACE / "app.py").read_text(encoding="utf-8"), "app.py", "exec"), space)
    assert space["listed"]("QLLM_DEMO_MODELS") == ["a/b", "c/d"]
    assert space["listed"]("QLLM_DEMO_RESULTS") == []
