"""A packed checkpoint in a program that does not know this package; and in one with another transformers."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import MODELS, float_model, prompt
from transformers import AutoModelForCausalLM

from qllm_hf import QllmConfig, QllmWarning, quantize_

CONFIG = {"w": 4, "kv": 8, "w_group_size": 32}
# torch calls the function that pyproject.toml names here, each time it is imported.
PYPROJECT = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
ENTRY_POINT = ("torch.backends", "qllm_hf", re.search(r'torch\.backends"\]\nqllm_hf = "(.+)"', PYPROJECT)[1])
# For a child process: what it is given, without what the tests set for themselves.
PLAIN = {key: value for key, value in os.environ.items() if not key.startswith("QLLM_")}


def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        env={**PLAIN, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Packed checkpoints; of the second one, all that is packed are experts."""
    folder = tmp_path_factory.mktemp("guard")
    quantize_(float_model("llama"), QllmConfig(**CONFIG)).save_pretrained(folder / "llama")
    float_model("mixtral").save_pretrained(folder / "float")
    only_experts = QllmConfig(**CONFIG, modules_to_not_convert=["self_attn"])
    with pytest.warns(QllmWarning, match="self_attn"):
        model = AutoModelForCausalLM.from_pretrained(folder / "float", quantization_config=only_experts)
    model.save_pretrained(folder / "mixtral")
    return folder


IGNORANT = """
import sys
from transformers import AutoModelForCausalLM
assert not any(name.startswith("qllm_hf") and name != "qllm_hf_autoload" for name in sys.modules)
for path in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(path)
    except RuntimeError as error:
        assert "size" in str(error) or "mismatch" in str(error), error
    else:
        sys.exit(f"{path} was loaded with random weights")
import qllm_hf
for path in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(path)
    assert "Packed" in str(model), model
print("refused, then loaded")
"""


def test_without_the_package_it_fails_and_with_it_it_loads(saved):
    """Without a guard, transformers would skip the packed tensors and go on with random weights and a warning."""
    result = run(IGNORANT, saved / "llama", saved / "mixtral")
    assert result.stdout.endswith("refused, then loaded\n"), result.stdout + result.stderr


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_guard_is_no_unexpected_tensor_for_us(saved, name):
    model, report = AutoModelForCausalLM.from_pretrained(saved / name, output_loading_info=True)
    assert not any(report.values()), report
    assert model.hf_quantizer.plan.quantized()


AUTOLOAD = """
import sys
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert "PackedLinear" in str(model), model
assert "qllm_hf.quantizer" in sys.modules
print("loaded")
"""


@pytest.fixture
def entry_point(tmp_path):
    """A search path on which torch finds our entry point, of the installed distribution or one made up here."""
    group, name, value = ENTRY_POINT
    before = PLAIN.get("PYTHONPATH", "")
    found = importlib.metadata.entry_points(group=group, name=name)
    if found:
        return before
    info = tmp_path / "made_up_qllm-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up-qllm\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    return os.pathsep.join([str(tmp_path), before]).rstrip(os.pathsep)


@pytest.mark.parametrize(("switch", "works"), [("1", True), ("0", False)])
def test_autoload(saved, entry_point, switch, works):
    """With the variable set, programs load packed checkpoints without an import of ours; it is not set by default."""
    result = run(AUTOLOAD, saved / "llama", PYTHONPATH=entry_point, QLLM_HF_AUTOLOAD=switch)
    assert (result.returncode == 0) == works, result.stdout + result.stderr
    assert ("loaded" in result.stdout) == works


# --- another transformers


EXCHANGED = ("llama", "falcon", "gpt2", "gemma2", "mixtral", "qwen3_moe", "jamba", "gpt_oss", "deepseek_v3", "mamba")
OTHER = """
import json, pathlib, sys
import torch, transformers, qllm_hf
from transformers import AutoModelForCausalLM
folder = pathlib.Path(sys.argv[1])
for name, load in json.loads(sys.argv[2]).items():
    torch.set_num_threads(1)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder / "there" / name, dtype=torch.float32, output_loading_info=True, **load)
    model.eval()
    assert not any(report.values()), (name, report)
    with torch.no_grad():
        torch.save(model(torch.load(folder / f"{name}.ids"), use_cache=False).logits, folder / f"{name}.logits")
    model.save_pretrained(folder / "back" / name)
print(transformers.__version__)
"""


@pytest.fixture
def other_transformers(cannot_run):
    path = os.environ.get("QLLM_TEST_OLDEST")
    if not path:
        pytest.skip("set QLLM_TEST_OLDEST to a folder with another transformers, as `make test-oldest` installs one")
    if not (Path(path) / "transformers").is_dir():
        cannot_run(f"QLLM_TEST_OLDEST={path} holds no transformers")
    return path


def test_checkpoints_can_be_exchanged_between_versions_of_transformers(other_transformers, tmp_path):
    """Written here, read and written there, read here again: the same tensors, the same logits."""
    ours = {}
    for name in EXCHANGED:
        model = quantize_(float_model(name), QllmConfig(w=4, w_group_size=32, kv=8 if MODELS[name].has_kv else 16))
        model.save_pretrained(tmp_path / "there" / name)
        torch.save(prompt(name), tmp_path / f"{name}.ids")
        with torch.no_grad():
            ours[name] = model.eval()(prompt(name), use_cache=False).logits
    loads = json.dumps({name: dict(MODELS[name].load) for name in EXCHANGED})
    path = os.pathsep.join([other_transformers, PLAIN.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    result = run(OTHER, tmp_path, loads, PYTHONPATH=path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split()[-1] != transformers.__version__, "that is the same version"
    for name in EXCHANGED:
        theirs = torch.load(tmp_path / f"{name}.logits")
        assert (theirs - ours[name]).abs().max() < 1e-5, name
        back, report = AutoModelForCausalLM.from_pretrained(
            tmp_path / "back" / name, dtype=torch.float32, output_loading_info=True, **MODELS[name].load
        )
        assert not any(report.values()), (name, report)
        with torch.no_grad():
            assert torch.equal(back.eval()(prompt(name), use_cache=False).logits, ours[name]), name
