"""The commit of a model on the Hub: of what is loaded, in records and recipes, and in what a run goes on with."""

import json
import subprocess
import sys

import pytest
from publishing.hub_client import environment
from publishing.hub_server import Hub

from qllm_hf.builtin import BUILTIN, REFERENCE
from qllm_hf.publishing.recipe import RECIPE
from qllm_hf.revision import folder_revision

pytestmark = [pytest.mark.oldest, pytest.mark.slow]
REPO = "ann/model"
COMMANDS = """
import json, sys
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner
from qllm_hf import QllmConfig
from qllm_hf.cli.main import app
from qllm_hf.loading import model_on_meta
from qllm_hf.revision import revision_of
repo = sys.argv[1]
for words in json.loads(sys.argv[2]):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
packed = AutoModelForCausalLM.from_pretrained(repo, quantization_config=QllmConfig(w=4, w_group_size=64))
print(json.dumps({"shapes": revision_of(repo, model_on_meta(repo)), "by transformers": revision_of(repo, packed)}))
"""


def run(hub, home, *commands, **more):
    """What the program above prints after it has run commands."""
    words = [sys.executable, "-c", COMMANDS, REPO, json.dumps([[str(word) for word in each] for each in commands])]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(hub, home, **more), cwd=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_model_that_moves_on_the_hub_is_another_one(tmp_path):
    out, packed = tmp_path / "scores", tmp_path / "packed"
    scores = ("evaluate", REPO, "--tasks", "mini_cloze", "--limit", "4", "-o", out, "-q")
    quantized = ("quantize", REPO, "--scheme", "W4g64", "-o", packed, "-q")
    files = {path.name: path.read_bytes() for path in BUILTIN[REFERENCE].iterdir() if path.is_file()}
    with Hub() as hub:
        files["README.md"] = b"---\nlicense: mit\n---\n"
        hub.store.create(REPO, "ann")
        first = hub.store.put(REPO, files)
        assert run(hub, tmp_path, scores, quantized, scores) == {"shapes": first, "by transformers": first}
        assert json.loads((packed / RECIPE).read_text())["revision"] == first
        assert [record["revision"] for record in records(out)] == [first], "it was asked once"

        second = hub.store.put(REPO, {"README.md": b"---\nlicense: apache-2.0\n---\n"})
        assert second != first
        run(hub, tmp_path, scores, ("card", packed))
        assert [record["revision"] for record in records(out)] == [first, second]
        card = (packed / "README.md").read_text()
        assert "license: mit" in card and first in card, "of the files that it was made from"
    # the Hub is gone: what lies in the cache is known
    assert run(hub, tmp_path, HF_HUB_OFFLINE="1") == {"shapes": second, "by transformers": second}


def records(out):
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def test_a_folder_is_known_by_what_is_in_it(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(3 << 20))
    before = folder_revision(tmp_path)
    (tmp_path / "notes.md").write_text("of no account")
    assert folder_revision(tmp_path) == before and before.startswith("files:")
    (tmp_path / "model.safetensors").write_bytes(bytes((3 << 20) - 1) + b"1")
    assert folder_revision(tmp_path) != before
