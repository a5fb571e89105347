"""Files that are missing, cut or mixed up are refused with a clear sentence, and nothing is ever saved by halves."""

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import hub

import qllm_hf
from qllm_hf import whole
from qllm_hf.checkpoint import INDEX, SINGLE, read_checkpoint, settle_header
from qllm_hf.errors import CheckpointError, ConfigError, ModelError, SchemeError
from qllm_hf.export.run import export_checkpoint
from qllm_hf.families import REPLACED_REMOTE_CODE
from qllm_hf.loading import (
    check_stored,
    load_model,
    load_tokenizer,
    local_folder,
    model_on_meta,
    save_model,
    stored_config,
)
from qllm_hf.publishing.quantized import read_quantized

LAYER = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def saved(stories, tmp_path_factory) -> Path:
    """A folder with packed weights and a tokenizer."""
    model = load_model(str(stories), qllm_hf.QllmConfig(w=4, kv=8))
    return save_model(model, load_tokenizer(str(stories)), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def sharded(saved, tmp_path_factory) -> Path:
    """The same in several files with an index."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    return save_model(load_model(str(saved)), None, folder, max_shard_size="100KB")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of `saved` to damage."""
    return shutil.copytree(saved, tmp_path / "copy")


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_tensors(folder: Path, change, metadata=None) -> None:
    with safe_open(folder / SINGLE, "pt") as file:
        tensors, stored = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(change(tensors), folder / SINGLE, metadata=stored if metadata is None else metadata)


def without(*names: str):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def test_undamaged_copies_load(folder, sharded):
    """What every refusal below is compared with."""
    ids = torch.tensor([[1, 403, 407]])
    single, several = load_model(str(folder)), load_model(str(sharded))
    assert torch.equal(single(ids).logits, several(ids).logits)
    assert len(read_checkpoint(sharded).files) > 2


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5000, 100_000, -1])
def test_a_file_that_was_cut_is_never_read(folder, size):
    path = folder / SINGLE
    cut(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*cut short"):
        load_model(str(folder))


def test_a_cut_file_among_several_is_named(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "copy")
    victim = sorted(folder.glob("*.safetensors"))[1]
    cut(victim, victim.stat().st_size - 4)
    with pytest.raises(CheckpointError, match=f"{victim.name}.*cut short"):
        load_model(str(folder))


def test_a_file_that_grew_is_refused(folder):
    with (folder / SINGLE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match="changed after it was written"):
        read_checkpoint(folder)


@pytest.mark.parametrize("header", [b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32"}}', b"not JSON"])
def test_a_damaged_header_is_refused(folder, header):
    (folder / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="damaged header"):
        read_checkpoint(folder)


def test_a_missing_shard_is_named(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "copy")
    victim = sorted(folder.glob("*.safetensors"))[0]
    victim.unlink()
    with pytest.raises(CheckpointError, match=f"1 of .* files .* missing: {victim.name}"):
        load_model(str(folder))


def test_a_tensor_that_only_the_index_knows_is_named(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "copy")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.lost.weight"] = next(iter(index["weight_map"].values()))
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names model\.lost\.weight, which no file holds"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("text", "message"), [("", "no valid JSON"), ('{"model_type": "lla', "no valid JSON"), ("[]", "not an object")]
)
def test_a_damaged_config_is_refused(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{message}"):
        load_model(str(folder))


def export(name: str) -> None:
    export_checkpoint(name, Path(name).parent / "out")


@pytest.mark.parametrize("read", [load_model, stored_config, read_quantized, export])
def test_what_cannot_be_is_refused_with_its_place(folder, read):
    change_config(folder, quantization_config={"quant_method": "qllm", "w": 9})
    with pytest.raises(SchemeError, match=rf"config.json of '{re.escape(str(folder))}': w=9: allowed are"):
        read(str(folder))


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_model(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapter: merge it"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ("pytorch_model.bin", r"pytorch_model\.bin and no safetensors .*use_safetensors=False"),
        ("part.safetensors", r"part\.safetensors, but neither model\.safetensors nor"),
        ("notes.txt", "the weights are missing"),
    ],
)
def test_a_folder_without_safetensors(folder, present, message):
    (folder / SINGLE).rename(folder / present)
    with pytest.raises(CheckpointError, match=message):
        load_model(str(folder))


def test_a_newer_format_is_refused(folder):
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_config(folder, quantization_config={**quantization, "format": 2})
    with pytest.raises(CheckpointError, match=r"format 2, .* reads up to 1\. Run: pip install"):
        load_model(str(folder))


def test_files_and_config_that_do_not_belong_together(folder, stories):
    change_tensors(folder, dict, metadata={"format": "pt", "qllm_format": "2"})
    with pytest.raises(CheckpointError, match=r"files have format 2, config\.json says 1"):
        load_model(str(folder))
    shutil.copy(stories / SINGLE, folder / SINGLE)
    with pytest.raises(CheckpointError, match="not written by qllm_hf"):
        load_model(str(folder))


def test_packed_files_without_their_config_are_refused(folder):
    change_config(folder, quantization_config=None)
    with pytest.raises(CheckpointError, match="has no quantization_config"):
        load_model(str(folder))


@pytest.mark.parametrize("part", ["_packed", "_scale", "_zero_point"])
def test_a_packed_weight_without_one_of_its_parts(folder, part):
    change_tensors(folder, without(LAYER + part))
    with pytest.raises(CheckpointError, match=f"lacks {LAYER}{part}"):
        load_model(str(folder))


def test_symmetric_weights_have_no_zero_points(stories, tmp_path):
    model = load_model(str(stories), qllm_hf.QllmConfig(w=4, w_symmetric=True))
    folder = save_model(model, None, tmp_path / "out")
    load_model(str(folder))
    change_tensors(folder, without(LAYER + "_packed", LAYER + "_scale"))
    with pytest.raises(CheckpointError, match=f"{LAYER}_packed"):
        load_model(str(folder))


def test_a_packed_weight_that_is_lost_altogether(folder):
    model, config = model_on_meta(str(folder)), stored_config(str(folder))
    check_stored(model, config, read_checkpoint(folder))
    change_tensors(folder, without(*(LAYER + part for part in ("_packed", "_scale", "_zero_point"))))
    with pytest.raises(CheckpointError, match=f"35 packed weights .* hold 34 .*not found: {LAYER}_packed"):
        check_stored(model, config, read_checkpoint(folder))
    with pytest.raises(CheckpointError, match=f"{LAYER}_packed"):
        load_model(str(folder))


def test_a_float_tensor_that_is_lost(folder):
    change_tensors(folder, without("model.layers.0.input_layernorm.weight"))
    with pytest.raises(CheckpointError, match=r"input_layernorm\.weight"):
        load_model(str(folder))


def test_where_a_model_can_be(tmp_path, stories):
    assert local_folder(str(stories)) == stories
    assert local_folder("owner/name") is None
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        local_folder(str(tmp_path / "file"))
    for path in (str(tmp_path / "nowhere"), "./nowhere", "../nowhere", "~/nowhere/at/all", "a/b/c", ""):
        with pytest.raises(CheckpointError, match="there is no folder"):
            local_folder(path)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_what_the_hub_does_not_give(load, monkeypatch):
    """It is asked for once: without a network huggingface_hub tries for 23 seconds before it gives up."""
    asked = []

    def download(*args, **options):
        asked.append(args)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"'no-such/model' is no folder here.*HF_HUB_OFFLINE=1"):
        load("no-such/model")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"model_type": "chatglm"}, CheckpointError, REPLACED_REMOTE_CODE["chatglm"][:40]),
        ({"model_type": "own", "auto_map": {}}, CheckpointError, "code of its own.*--trust-remote-code"),
        ({"model_type": "lama"}, ModelError, "'lama' is unknown .* Did you mean 'llama'"),
        ({}, ModelError, "unknown"),
        ({"model_type": "t5"}, ModelError, "'t5' is no causal language model"),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}},
            ModelError,
            "already quantized, by 'gptq'",
        ),
    ],
)
def test_models_that_are_not_for_us(tmp_path, config, error, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        load_model(str(tmp_path))


def test_shapes_come_from_the_config_alone(stories, tmp_path):
    shutil.copy(stories / "config.json", tmp_path)
    model = model_on_meta(str(tmp_path), dtype="bfloat16")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert (model.dtype, sum(parameter.numel() for parameter in model.parameters())) == (torch.bfloat16, 260_032)


def test_runtime_options_of_a_packed_model(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = load_model(str(saved), qllm_hf.QllmConfig(kv=4))
    assert str(model.hf_quantizer.quantization_config.scheme) == "W4KV4"
    with pytest.raises(ConfigError, match="holds packed weights with w=4"):
        load_model(str(saved), qllm_hf.QllmConfig(w=3))


def test_a_tokenizer_that_is_not_there(saved, tmp_path):
    assert load_tokenizer(str(saved)).decode(load_tokenizer(str(saved))("Once").input_ids[1:]) == "Once"
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.fixture(scope="module")
def model(saved):
    return load_model(str(saved))


class Broken:
    """A tokenizer whose saving fails."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{")
        raise OSError("no space left on device")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_saved(saved, stories):
    names = {path.name for path in saved.iterdir()}
    assert names == {"config.json", "generation_config.json", SINGLE, "tokenizer.json", "tokenizer_config.json"}
    assert json.loads((saved / "generation_config.json").read_text())["eos_token_id"] == [1, 2]
    assert (saved / SINGLE).stat().st_mode == (saved / "config.json").stat().st_mode


def test_saving_that_fails_leaves_no_folder(model, tmp_path):
    with pytest.raises(OSError, match="no space"):
        save_model(model, Broken(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    save_model(model, None, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_saving_is_checked_before_it_counts(model, tmp_path, monkeypatch):
    save = type(model).save_pretrained

    def save_half(self, folder, **options):
        save(self, folder, **options)
        cut(folder / SINGLE, 100_000)

    monkeypatch.setattr(type(model), "save_pretrained", save_half)
    with pytest.raises(CheckpointError, match="cut short"):
        save_model(model, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_replacing_needs_to_be_asked_for_and_to_succeed(model, folder):
    before = content(folder)
    with pytest.raises(CheckpointError, match=r"not empty.*--overwrite"):
        save_model(model, None, folder)
    with pytest.raises(OSError, match="no space"):
        save_model(model, Broken(), folder, overwrite=True)
    assert content(folder) == before
    save_model(model, None, folder, overwrite=True)
    assert set(content(folder)) == {"config.json", "generation_config.json", SINGLE}, "nothing old stays"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(model, folder, monkeypatch):
    before, rename = content(folder), Path.rename

    def refuse_new(self, target):
        if ".partial-" in self.name:
            raise OSError("refused")
        return rename(self, target)

    monkeypatch.setattr(whole, "_exchange", lambda first, second: False)  # a file system that cannot
    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OSError, match="refused"):
        save_model(model, None, folder, overwrite=True)
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_holds_something_else_is_never_replaced(model, tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="no model folder"):
        save_model(model, None, tmp_path, overwrite=True)
    with pytest.raises(CheckpointError, match="is a file"):
        save_model(model, None, tmp_path / "letters.txt", overwrite=True)
    assert content(tmp_path) == {"letters.txt": b"dear"}


def test_transformers_alone_reads_what_was_saved(saved, model):
    again = AutoModelForCausalLM.from_pretrained(saved)
    ids = torch.tensor([[1, 403, 407]])
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_model_that_is_saved_again_has_the_same_bytes(saved, tmp_path):
    """safetensors orders its metadata anew each time: of eight files, all would agree by chance in one of 128 runs."""
    model = load_model(str(saved))
    contents = {(save_model(model, None, tmp_path / str(number)) / SINGLE).read_bytes() for number in range(8)}
    assert len(contents) == 1
    with safe_open(tmp_path / "0" / SINGLE, "pt") as file:
        assert list(file.metadata()) and len(file.keys()) > 20


def test_a_settled_header_holds_what_it_held(tmp_path):
    metadata = {"z": 'last "quoted"', "format": "pt", "a": "é"}
    save_file({"x": torch.arange(6.0)}, tmp_path / "one.safetensors", metadata)
    before = (tmp_path / "one.safetensors").read_bytes()
    settle_header(tmp_path / "one.safetensors")
    after = (tmp_path / "one.safetensors").read_bytes()
    assert len(after) == len(before)
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        assert file.metadata() == metadata
        assert torch.equal(file.get_tensor("x"), torch.arange(6.0))
    assert list(json.loads(after[8 : 8 + int.from_bytes(after[:8], "little")])["__metadata__"]) == ["a", "format", "z"]
