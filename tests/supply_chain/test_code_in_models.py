"""A model folder is data: no code in it runs, whichever command reads it, until somebody trusts it."""

import contextlib
import pickle
import shutil

import jinja2
import pytest
import torch
from supply_chain.traps import PICKLES, make_traps, set_traps
from transformers import AutoModelForCausalLM, dynamic_module_utils
from typer.testing import CliRunner

from qllm_hf import QllmConfig
from qllm_hf.cli.main import app
from qllm_hf.errors import CheckpointError
from qllm_hf.loading import load_model, load_tokenizer
from qllm_hf.methods.stored import read_stored
from qllm_hf.serving.running import load_server

FLOAT = [
    ("quantize", "MODEL", "--scheme", "W4KV4", "-o", "OUT"),
    ("quantize", "MODEL", "--scheme", "W4", "--method", "gptq", "--calibration", "TEXT", "--samples", "2", "-o", "OUT"),
    ("generate", "MODEL", "Once", "--max-new-tokens", "2"),
    ("evaluate", "MODEL", "--tasks", "mini_cloze", "--limit", "2", "-o", "OUT"),
    ("sweep", "MODEL", "--schemes", "W4", "--tasks", "mini_cloze", "--limit", "2", "-o", "OUT"),
    ("stats", "MODEL", "-o", "OUT"),
    ("bench", "MODEL", "--schemes", "W4", "--input", "4", "--output", "2", "--repeats", "1", "-o", "OUT"),
    ("recommend", "MODEL"),
    ("info", "MODEL"),
    ("import", "MODEL", "-o", "OUT"),
    ("export", "MODEL", "-o", "OUT"),
]
PACKED = [
    ("generate", "MODEL", "Once", "--max-new-tokens", "2"),
    ("info", "MODEL", "--verify"),
    ("export", "MODEL", "-o", "OUT"),
    ("card", "MODEL", "--license", "mit", "--base-model", "owner/name", "-o", "OUT"),
]


@pytest.fixture
def spot(tmp_path, monkeypatch):
    """An empty folder, in which code that ran leaves its name."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "spot"
    folder.mkdir()
    return folder


def run(command, model, tmp_path, *more):
    (tmp_path / "text.txt").write_text("Once upon a time there was a dog. " * 100)
    places = {"MODEL": model, "OUT": tmp_path / "out", "TEXT": tmp_path / "text.txt"}
    return CliRunner().invoke(app, [str(places.get(part, part)) for part in (*command, *more)])


def ran(spot) -> list[str]:
    return sorted(path.name for path in spot.iterdir())


@pytest.mark.parametrize("command", FLOAT, ids=lambda command: "-".join(command[:1] + command[4:6]).replace("/", ""))
def test_no_command_runs_code_of_a_float_model(command, stories, tmp_path, spot, monkeypatch):
    known = make_traps(stories, tmp_path / "known", spot, needs_code=False)
    monkeypatch.chdir(known)
    result = run(command, known, tmp_path)
    assert ran(spot) == []
    if command[0] in ("import", "export"):
        assert result.exit_code == 1, "a float model is none that they take"
    else:
        assert result.exit_code == 0, result.output
    unknown = make_traps(stories, tmp_path / "unknown", spot, needs_code=True)
    result = run(command, unknown, tmp_path)
    assert ran(spot) == []
    assert result.exit_code == 1 and "Traceback" not in result.output
    if command[0] not in ("import", "export"):
        assert "trust" in result.output, result.output


@pytest.mark.parametrize("command", PACKED, ids="-".join)
def test_no_command_runs_code_of_a_packed_model(command, packed, tmp_path, spot, monkeypatch):
    model = shutil.copytree(packed, tmp_path / "packed")
    set_traps(model, spot)
    monkeypatch.chdir(model)
    result = run(command, model, tmp_path)
    assert ran(spot) == []
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def packed(stories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traps") / "packed"
    load_model(str(stories), QllmConfig(w=4, w_group_size=-1)).save_pretrained(folder)
    load_tokenizer(str(stories)).save_pretrained(folder)
    return folder


@pytest.mark.oldest
def test_loading_a_model_for_a_server_or_a_calibration_runs_no_code(stories, tmp_path, spot):
    model = make_traps(stories, tmp_path / "model", spot, needs_code=True)
    with pytest.raises(CheckpointError, match=r"tokenizer of .* runs code of its own.*trust_remote_code"):
        load_server(str(model))
    model = make_traps(stories, tmp_path / "half", spot, needs_code=False)
    config = QllmConfig(w=4, method="gptq", calibration=["Once upon a time. " * 100], samples=2, seqlen=64)
    AutoModelForCausalLM.from_pretrained(model, quantization_config=config)
    assert ran(spot) == []


def test_a_chat_template_gets_out_of_nowhere(stories, tmp_path, spot):
    tokenizer = load_tokenizer(str(make_traps(stories, tmp_path / "model", spot, needs_code=False)))
    with pytest.raises(jinja2.exceptions.SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert ran(spot) == []
    with contextlib.suppress(FileExistsError):  # of the second time around
        jinja2.Template(tokenizer.chat_template).render()
    assert ran(spot) == ["template"], "the template would not do harm anywhere"


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_not_loaded(name, stories, tmp_path, spot):
    model = make_traps(stories, tmp_path / "model", spot, needs_code=False)
    (model / "model.safetensors").unlink()
    for other in PICKLES:
        if other != name:
            (model / other).unlink()
    with pytest.raises(CheckpointError):
        load_model(str(model))
    with pytest.raises(CheckpointError, match="no AWQ result that can be read safely"):
        read_stored(model / name)
    assert ran(spot) == []
    pickle.loads((model / name).read_bytes())
    assert ran(spot) == [name], "the pickle would not do harm anywhere"


def test_code_runs_where_it_is_trusted(stories, tmp_path, spot):
    """Negative control: the traps work."""
    model = make_traps(stories, tmp_path / "model", spot, needs_code=True)
    result = run(("generate", "MODEL", "Once", "--max-new-tokens", "2"), model, tmp_path, "--trust-remote-code")
    assert {"trap_model", "trap_tokenizer"} <= set(ran(spot)), result.output
    assert torch.isfinite(load_model(str(model), trust_remote_code=True)(torch.tensor([[1, 2]])).logits).all()
