"""A calibration that was stopped goes on where it stopped, and only its own work folder is ever used for that."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import float_model, on_one_thread, prompt
from torch import Tensor

from qllm_hf import QllmConfig
from qllm_hf.errors import CheckpointError, ConfigError, QllmWarning
from qllm_hf.methods import engine
from qllm_hf.methods.calibration import Calibration
from qllm_hf.methods.work import Work
from qllm_hf.streamed import computing_device, quantize_streamed, work_folder

# RWKV: said where it is tested
pytestmark = pytest.mark.filterwarnings("ignore:.*rounded without a scale:qllm_hf.errors.QllmWarning")
_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)
# families whose later blocks depend on what is remembered of the first: the length of its output, scaled inputs
FAMILIES = ("llama", "mixtral", "bloom", "rwkv", "deepseek_v3")


class Stopped(Exception):
    """What ends a run in a test."""


def calibration(name: str, batch: int = 8) -> Calibration:
    return Calibration(prompt(name, batch=batch), "ids")


@pytest.fixture(scope="module")
def floats(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("floats")
    for name in FAMILIES:
        float_model(name).to(torch.bfloat16).save_pretrained(folder / name)
    return folder


def start(floats: Path, name: str, work: Path, batch: int = 8, restart: bool = False, **options):
    given = {"w": 3, "w_group_size": 32, "method": "awq+gptq", **options}
    text = calibration(name, batch)
    config = QllmConfig(calibration=text, **given)
    return quantize_streamed(str(floats / name), config, text, work, restart=restart)


def tensors(model) -> dict[str, Tensor]:
    return dict(model.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.fixture
def stop_at(monkeypatch):
    """Stops a run when it begins with a block; returns the blocks that runs began with."""
    begun = []
    quantize_block = engine._quantize_block

    def arrange(last: int | None) -> list[int]:
        def stopping(run, index):
            if index == last:
                raise Stopped
            begun.append(index)
            return quantize_block(run, index)

        begun.clear()
        monkeypatch.setattr(engine, "_quantize_block", stopping)
        return begun

    return arrange


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_that_was_stopped_makes_what_an_undisturbed_one_makes(floats, name, tmp_path, stop_at):
    expected, _ = start(floats, name, tmp_path / "whole")
    stop_at(1)
    with pytest.raises(Stopped):
        start(floats, name, tmp_path / "work")
    begun = stop_at(None)
    model, work = start(floats, name, tmp_path / "work")
    assert begun[0] == 1, "the first block is not made again"
    assert same(tensors(model), tensors(expected))
    assert model.config.quantization_config.to_dict() == expected.config.quantization_config.to_dict()
    ids = prompt(name, seed=3)
    with torch.no_grad():
        assert torch.equal(model(ids, use_cache=False).logits, expected(ids, use_cache=False).logits)
    work.remove()
    assert not (tmp_path / "work").exists()


def test_a_run_may_be_stopped_more_than_once_and_anywhere(floats, tmp_path, stop_at, monkeypatch):
    expected, _ = start(floats, "rwkv", tmp_path / "whole")
    for last in (0, 1, 1, 3):
        stop_at(last)
        with pytest.raises(Stopped):
            start(floats, "rwkv", tmp_path / "work")
    save = Work.save_hidden

    def failing(self, kind, index, batch, hidden):
        if index == 4:
            raise Stopped
        save(self, kind, index, batch, hidden)

    stop_at(None)
    with monkeypatch.context() as patched:
        patched.setattr(Work, "save_hidden", failing)
        with pytest.raises(Stopped):
            start(floats, "rwkv", tmp_path / "work")
    begun = stop_at(None)
    model, _ = start(floats, "rwkv", tmp_path / "work")
    assert begun == [3]
    assert same(tensors(model), tensors(expected))


def test_a_finished_run_is_only_read_again(floats, tmp_path, stop_at):
    first, _ = start(floats, "llama", tmp_path / "work")
    begun = stop_at(None)
    second, _ = start(floats, "llama", tmp_path / "work")
    assert begun == []
    assert same(tensors(first), tensors(second))


@pytest.fixture
def stopped(floats, tmp_path, stop_at) -> Path:
    """The work folder of a run that has finished one of two blocks."""
    stop_at(1)
    with pytest.raises(Stopped):
        start(floats, "llama", tmp_path / "work")
    stop_at(None)
    return tmp_path / "work"


def test_what_is_needed_no_longer_is_gone(stopped):
    kept = sorted(path.name for path in stopped.iterdir())
    assert kept == ["block-00000.safetensors", "float-00001", "hidden-00001", "progress.json"]


@pytest.mark.parametrize(
    ("options", "different"),
    [
        ({"method": "gptq"}, "config"),
        ({"w": 4}, "config"),
        ({"method_options": {"damping": 0.1}}, "config"),
        ({"kv": 4}, "config"),
        ({"batch": 4}, "calibration"),
        ({"batch": 4, "w": 4}, "calibration, config"),
    ],
)
def test_the_folder_of_another_run_is_refused(floats, stopped, options, different):
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}
    with pytest.raises(CheckpointError, match=rf"1 blocks of another run; it differs in {different}\..*--restart"):
        start(floats, "llama", stopped, **options)
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*")} == before


def test_a_run_that_has_finished_no_block_makes_way_for_any_other(floats, tmp_path, stop_at):
    stop_at(0)
    with pytest.raises(Stopped):
        start(floats, "llama", tmp_path / "work")
    assert (tmp_path / "work" / "hidden-00000").is_dir()
    begun = stop_at(None)
    model, _ = start(floats, "bloom", tmp_path / "work", batch=4)
    assert begun == [0, 1]
    expected, _ = start(floats, "bloom", tmp_path / "whole", batch=4)
    assert same(tensors(model), tensors(expected))


def test_the_folder_of_another_model_is_refused(floats, stopped):
    with pytest.raises(CheckpointError, match=r"differs in (calibration, )?model, revision"):
        start(floats, "bloom", stopped)


def test_other_weights_of_the_same_size_are_refused(floats, stopped):
    """Another training of the model, put where the first was."""
    path = floats / "llama" / "model.safetensors"
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-4] + bytes(4))
        with pytest.raises(CheckpointError, match=r"1 blocks of another run; it differs in revision\."):
            start(floats, "llama", stopped)
    finally:
        path.write_bytes(before)


def test_restart_forgets(floats, stopped, stop_at, tmp_path):
    begun = stop_at(None)
    model, _ = start(floats, "llama", stopped, restart=True, method="gptq")
    assert begun == [0, 1]
    expected, _ = start(floats, "llama", tmp_path / "other", method="gptq")
    assert same(tensors(model), tensors(expected))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"identity": {}, "done": "x", "notes": {}}'])
def test_a_damaged_progress_file_is_refused(floats, stopped, content):
    (stopped / "progress.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"progress\.json is damaged.*--restart"):
        start(floats, "llama", stopped)


def test_a_folder_of_something_else_is_refused_and_left_alone(floats, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is no work folder of a calibration"):
        start(floats, "llama", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("kind", ["hidden", "float"])
def test_missing_hidden_states_are_named(floats, stopped, kind):
    shutil.rmtree(stopped / f"{kind}-00001")
    with pytest.raises(CheckpointError, match=rf"{kind}-00001.00000\.safetensors is missing.*--restart"):
        start(floats, "llama", stopped)


def test_a_missing_block_is_named(floats, stopped):
    (stopped / "block-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"block-00000\.safetensors is missing.*--restart"):
        start(floats, "llama", stopped)


def test_a_half_written_file_never_counts(floats, tmp_path, stop_at, monkeypatch):
    from qllm_hf.methods import work as module

    def cut(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(module, "save_file", cut)
        with pytest.raises(Stopped):
            start(floats, "llama", tmp_path / "work")
    assert not list((tmp_path / "work").rglob("[!.]*.safetensors"))
    expected, _ = start(floats, "llama", tmp_path / "whole")
    model, _ = start(floats, "llama", tmp_path / "work")
    assert same(tensors(model), tensors(expected))


def test_a_block_file_holds_the_packed_block(floats, stopped):
    content = load_file(stopped / "block-00000.safetensors")
    assert {tensor.dtype for name, tensor in content.items() if "up_proj" in name} == {
        torch.int16,
        torch.uint8,
        torch.bfloat16,
    }
    notes = json.loads((stopped / "progress.json").read_text())
    assert (notes["done"], notes["identity"]["calibration"]["samples"]) == (1, 8)


def test_the_work_folder_lies_hidden_beside_the_output(tmp_path):
    assert work_folder(tmp_path / "out") == tmp_path / ".out.calibration"


def test_layers_without_a_scale_are_named_also_after_a_stop(floats, tmp_path, stop_at):
    stop_at(1)
    with pytest.raises(Stopped):
        start(floats, "rwkv", tmp_path / "work")
    stop_at(None)
    with pytest.warns(
        QllmWarning, match=r"rwkv.blocks.0.attention.key, .*10 layers.*nothing before it can take a scale"
    ):
        start(floats, "rwkv", tmp_path / "work")


@pytest.mark.filterwarnings("error::qllm_hf.errors.QllmWarning")
def test_nothing_is_said_where_all_layers_have_a_scale(floats, tmp_path):
    start(floats, "llama", tmp_path / "work")


@pytest.mark.parametrize("device_map", [None, "auto", "balanced", "cpu"])
def test_blocks_are_computed_on_one_device(device_map):
    expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = computing_device(device_map)
    assert found == (torch.device("cpu") if device_map in (None, "cpu") else expected or torch.device("cpu"))


@pytest.mark.parametrize("device_map", ["cuda:99", "nowhere", "meta?"])
def test_a_device_that_is_not_there_is_refused_before_work_begins(floats, tmp_path, device_map):
    config = QllmConfig(w=3, method="gptq", calibration=calibration("llama"))
    with pytest.raises(ConfigError, match=r"there is no device .* Give --device-map cpu"):
        quantize_streamed(str(floats / "llama"), config, calibration("llama"), tmp_path / "work", device=device_map)
    assert not (tmp_path / "work").exists()


def test_what_was_damaged_meanwhile_is_found(floats, stopped):
    """A flipped bit, a file of another place, another number of blocks: the run would go on with something else."""
    for name in ("block-00000.safetensors", "hidden-00001/00000.safetensors", "progress.json"):
        whole = (stopped / name).read_bytes()
        damaged = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
        if name == "progress.json":
            damaged = whole.replace(b'"done": 1', b'"done": 2')
        (stopped / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"{Path(name).name} is damaged.*Begin again"):
            start(floats, "llama", stopped)
        (stopped / name).write_bytes(whole)
    work = Work(stopped, json.loads((stopped / "progress.json").read_text())["identity"])
    work.load_block(0)
    shutil.copyfile(work.block_file(0), work.block_file(1))
    with pytest.raises(CheckpointError, match=r"block-00001\.safetensors is damaged, or of another run"):
        work.load_block(1)
    with pytest.raises(CheckpointError, match=r"block-00002\.safetensors is missing"):
        work.load_block(2)
    assert start(floats, "llama", stopped)
