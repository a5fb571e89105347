"""Checkpoints that were damaged, or made to do harm: the right model comes of them, or a sentence that names the file.

`scripts/fuzz_checkpoints.py` is the whole campaign; here is a share of it, and each fault that it found by name.
"""

import importlib
import json
import os
import random
import shutil
import zlib
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from tiny_models import float_model
from typer.testing import CliRunner

from qllm_hf import QllmConfig
from qllm_hf.checkpoint import INDEX, PACKED, SCALE, SINGLE, ZERO_POINT, read_checkpoint
from qllm_hf.checksums import CHECKSUMS_KEY, checksum, verify
from qllm_hf.cli.main import app
from qllm_hf.errors import CheckpointError, QllmError
from qllm_hf.header import read_header
from qllm_hf.loading import load_model, load_tokenizer, load_whole, save_model
from qllm_hf.safetensors_stream import Item, write_items
from qllm_hf.strict_json import parse_object


@pytest.fixture(scope="module")
def fuzz():
    """The campaign, as a module."""
    return importlib.import_module("fuzz_checkpoints")


@pytest.fixture(scope="module")
def base(fuzz, tmp_path_factory) -> Path:
    """A packed W4KV8 Llama in several files, with a tokenizer."""
    folder = tmp_path_factory.mktemp("base") / "model"
    fuzz.make_base(folder)
    return folder


@pytest.fixture
def folder(base, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(base, tmp_path / "copy")


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensor(folder: Path, name: str, change) -> None:
    """Save a file with another value of one tensor, and the metadata it had."""
    for path in folder.glob("*.safetensors"):
        tensors, metadata = load_file(path), read_header(path)[1]
        if name in tensors:
            tensors[name] = change(tensors[name].clone())
            save_file(tensors, path, metadata=metadata)


def put(value: float):
    def change(tensor):
        tensor.view(-1)[3] = value
        return tensor

    return change


def flip(tensor):
    tensor.view(-1)[3] ^= 1
    return tensor


def test_a_share_of_the_campaign(fuzz):
    kinds = len(fuzz.KINDS)
    outcomes = fuzz.campaign(fuzz.some_cases(kinds, seed=7))
    assert [outcome for outcome in outcomes if outcome.is_fault] == []
    assert len({outcome.case.kind for outcome in outcomes}) == kinds
    assert {outcome.word for outcome in outcomes} == {"right", "refused", "other"}


@pytest.mark.parametrize(("plant", "kind"), [("values", "scale nan or inf"), ("checksums", "bit of words")])
def test_the_campaign_finds_a_check_that_was_left_out(fuzz, plant, kind):
    outcomes = fuzz.campaign(fuzz.some_cases(2, seed=7, only=kind), plant=plant)
    assert any(outcome.is_fault for outcome in outcomes)
    assert "FAULT" in fuzz.table(outcomes)


def test_an_undamaged_copy_is_loaded_and_verified(folder, fuzz):
    assert torch.equal(fuzz.logits(load_model(str(folder), verify=True)), fuzz.logits(load_model(str(folder))))
    checkpoint = read_checkpoint(folder)
    assert verify(checkpoint) == (len(checkpoint.tensors), len(checkpoint.tensors))
    assert load_tokenizer(str(folder))("once")["input_ids"] == [0]


# What the values of tensors say. Scales and zero points are looked at always, all else where it is asked for.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_no_number(folder, value):
    name = "model.layers.0.mlp.up_proj.weight_scale"
    change_tensor(folder, name, put(value))
    with pytest.raises(CheckpointError, match=rf"{name} in the checkpoint holds infinite numbers or NaN"):
        load_model(str(folder))


def test_a_zero_point_that_its_bits_do_not_reach(folder):
    name = "model.layers.1.self_attn.q_proj.weight_zero_point"
    change_tensor(folder, name, put(15))
    load_model(str(folder))
    change_tensor(folder, name, put(16))
    with pytest.raises(CheckpointError, match=rf"{name} in the checkpoint holds 16, where 4 bits reach to 15"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.layers.0.mlp.up_proj.weight_packed", flip),
        ("model.layers.0.mlp.up_proj.weight_zero_point", flip),
        ("model.layers.0.mlp.up_proj.weight_scale", put(0.25)),
        ("model.embed_tokens.weight", put(0.25)),
    ],
)
def test_a_changed_value_is_found_by_its_checksum(folder, name, change):
    change_tensor(folder, name, change)
    load_model(str(folder))  # nothing else can see it
    with pytest.raises(CheckpointError, match=rf"1 tensors are not what they were .*{name} in model-0000"):
        load_model(str(folder), verify=True)


def test_info_says_what_it_verified(folder, stories):
    def info(path, *options):
        done = CliRunner().invoke(app, ["info", str(path), *options])
        return done.exit_code, done.output

    total = len(read_checkpoint(folder).tensors)
    assert f"Verified: {total} of {total} tensors" in info(folder, "--verify")[1]
    change_tensor(folder, "model.norm.weight", put(0.25))
    code, output = info(folder, "--verify")
    assert (code, "model.norm.weight in model-" in output) == (1, True)
    code, output = info(stories, "--verify")
    assert (code, "holds no checksums" in output) == (1, True)
    assert info(stories, "--verify", "--scheme", "W4")[0] == 2


def test_a_file_without_checksums_is_loaded_but_not_verified(folder):
    for path in folder.glob("*.safetensors"):
        save_file(load_file(path), path, metadata={"format": "pt", "qllm_format": "1"})
    load_model(str(folder))
    with pytest.raises(CheckpointError, match="holds no checksums, so it cannot be verified"):
        load_model(str(folder), verify=True)
    with pytest.raises(CheckpointError, match="hf download owner/name"):
        load_whole("owner/name", verify=True)


def test_a_model_that_was_loaded_is_saved_with_the_same_checksums(folder, tmp_path):
    again = save_model(load_model(str(folder)), None, tmp_path / "again")
    sums = [read_header(path)[1][CHECKSUMS_KEY] for path in (again / SINGLE, next(folder.glob("*-00001-*")))]
    assert sums[0] == sums[1]


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "qwen3_moe"])
def test_tensors_that_are_renamed_while_they_are_saved(name, tmp_path):
    """Experts have other names in memory than in files."""
    float_model(name).save_pretrained(tmp_path / "float")
    config = QllmConfig(w=4, w_group_size=32)
    folder = save_model(load_model(str(tmp_path / "float"), config), None, tmp_path / "packed")
    checkpoint = read_checkpoint(folder)
    compared, total = verify(checkpoint)
    assert total >= compared >= sum(name.endswith((PACKED, SCALE, ZERO_POINT)) for name in checkpoint.tensors) > 0
    victim = next(name for name in checkpoint.tensors if name.endswith(ZERO_POINT))
    change_tensor(folder, victim, flip)
    with pytest.raises(CheckpointError, match=rf"1 tensors are not .*{victim}"):
        verify(read_checkpoint(folder))


def test_tensors_under_each_others_names(folder):
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        twins = [name for name in tensors if name.endswith(("gate_proj.weight_packed", "up_proj.weight_packed"))]
        if len(twins) > 1:
            break
    first, second = twins[:2]
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, path, metadata=read_header(path)[1])
    with pytest.raises(CheckpointError, match="2 tensors are not what they were"):
        verify(read_checkpoint(folder))


def test_streamed_files_have_checksums_if_they_are_packed(tmp_path):
    tensor = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    items = [Item("a_packed", tensor.dtype, tuple(tensor.shape), lambda: tensor)]
    write_items(tmp_path, items, metadata={"qllm_format": "1"})
    expected = checksum("I16", [2, 3], [tensor.numpy().tobytes()])
    assert read_header(tmp_path / SINGLE)[1][CHECKSUMS_KEY] == f"{zlib.crc32(b'a_packed'):08x}{expected}"
    assert torch.equal(load_file(tmp_path / SINGLE)["a_packed"], tensor)
    write_items(tmp_path, items)
    assert CHECKSUMS_KEY not in read_header(tmp_path / SINGLE)[1]


# What the files say about each other.


@pytest.mark.parametrize(
    "name",
    [
        "/outside.safetensors",
        "../x.safetensors",
        "sub/x.safetensors",
        "config.json",
        "a\0b",
        "",
        "x" * 300 + ".safetensors",
    ],
)
def test_an_index_that_leads_elsewhere(folder, name):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"{INDEX} names .*Nothing outside of it is read"):
        load_model(str(folder))


def test_links_are_followed_as_in_the_cache_of_the_hub(folder, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in folder.iterdir():
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    load_model(str(folder))


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json", INDEX, "model.safetensors"])
def test_a_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for load in (load_model, load_tokenizer):
        with pytest.raises(CheckpointError, match=rf"{name} is no file \(a pipe"):
            load(str(folder))


def test_a_tensor_in_two_files(folder):
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    name = sorted(load_file(first))[0]
    save_file({**load_file(second), name: torch.zeros(2)}, second, metadata=read_header(second)[1])
    with pytest.raises(CheckpointError, match=rf"{second.name} holds {name}, and so does another file"):
        load_model(str(folder))


def test_zero_points_that_the_config_denies(folder):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit(folder / "config.json", quantization_config={**config, "w_symmetric": True})
    with pytest.raises(CheckpointError, match=r"zero_point.*but its config\.json says w_symmetric"):
        load_model(str(folder))


def test_an_input_scale_that_no_layer_takes(folder):
    path = min(folder.glob("*.safetensors"))
    extra = {"model.layers.0.mlp.up_proj.input_scale": torch.ones(64)}
    save_file({**load_file(path), **extra}, path, metadata=read_header(path)[1])
    with pytest.raises(CheckpointError, match=r"up_proj\.input_scale, which the model .* has no place for"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, and the files hold"),
        ({"num_hidden_layers": 10**400}, "num_hidden_layers=a number of 1329 bits"),
        ({"num_labels": 10**9}, "num_labels=1000000000"),
        ({"vocab_size": 2**40}, "describes a model of"),
        ({"hidden_size": "../x"}, "describes no model that transformers can make.*hidden_size"),
        ({"hidden_size": 128}, "the files hold .* bytes"),
        pytest.param(
            {"vocab_size": 65},
            "cannot be loaded",
            marks=pytest.mark.skipif(
                Version(transformers.__version__) < Version("5.23"), reason="it takes the file's shape: the right model"
            ),
        ),
        ({"dtype": "x"}, "describes no model that transformers can make"),
        ({"attn_implementation": "owner/kernel"}, "that is code from somewhere else"),
        ({"text_config": {"experts_implementation": "owner/kernel"}}, "that is code from somewhere else"),
        ({"transformers_weights": "other.safetensors"}, "other weights than model.safetensors"),
        ({"quantization_config": ["qllm"]}, "no object"),
    ],
)
def test_a_config_that_asks_for_what_the_files_do_not_hold(folder, changes, message):
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(str(folder))


def test_a_value_of_quantization_config_is_refused_with_the_name_of_the_file(folder):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit(folder / "config.json", quantization_config={**config, "w": 9})
    with pytest.raises(QllmError, match=r"config\.json of .*w=9"):
        load_model(str(folder))


@pytest.mark.parametrize("text", ["", "{", '{"max_length": 5, "max_length": 6}'])
def test_a_generation_config_is_not_skipped_in_silence(folder, text):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        load_model(str(folder))


@pytest.mark.parametrize("changes", [{"model_max_length": "x"}, {"tokenizer_class": []}])
def test_a_tokenizer_that_cannot_be(folder, changes):
    edit(folder / "tokenizer_config.json", **changes)
    with pytest.raises(CheckpointError, match="no tokenizer that can be read"):
        load_tokenizer(str(folder))


# Headers and JSON.

HEADER = {
    "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
    "b": {"dtype": "F16", "shape": [2], "data_offsets": [4, 8]},
}


def write(path: Path, header: dict | bytes, data: bytes = bytes(8)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "F99"}, "unknown dtype 'F99'"),
        ({"dtype": "F32"}, "takes no 4 bytes"),
        ({"shape": [-4]}, r"the shape \[-4\]"),
        ({"shape": [2**63]}, "the shape"),
        ({"shape": [True, 4]}, "the shape"),
        ({"shape": [4.0]}, "the shape"),
        ({"data_offsets": [4, 0]}, "takes no -4 bytes"),
        ({"data_offsets": [4, 8]}, "the tensor before it ends"),
        ({"data_offsets": [1, 5]}, "the tensor before it ends"),
    ],
)
def test_a_header_that_does_not_describe_each_byte_once(tmp_path, changes, message):
    path = tmp_path / "x.safetensors"
    assert len(read_header(write(path, HEADER))[0]) == 2
    write(path, {**HEADER, "a": {**HEADER["a"], **changes}})
    with pytest.raises(CheckpointError, match=rf"x\.safetensors has a damaged header.*{message}"):
        read_header(path)


def test_metadata_is_text(tmp_path):
    with pytest.raises(CheckpointError, match="__metadata__ is no table of texts"):
        read_header(write(tmp_path / "x.safetensors", {**HEADER, "__metadata__": {"format": 1}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"b": {"a": 1, "a": 2}}', "'a' is there twice"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": [' + b"[]," * 1_000_001 + b"0]}", "more than 1000000 objects and lists"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": "\xff"}', "codec can't decode"),
        ('{"a": 1}'.encode("utf-16"), "codec can't decode"),
        (b'{"a": ' + b"1" * 5000 + b"}", "digits"),
        (b"[]", "list, not an object"),
    ],
)
def test_json_that_is_not_taken(text, message):
    with pytest.raises(ValueError, match=message):
        parse_object(text)


def test_json_that_is_taken():
    assert parse_object(b'{"time_step_limit": [0.0, Infinity], "a": {"a": 1}}')["a"] == {"a": 1}


def test_every_kind_of_damage_changes_something(fuzz, base, tmp_path):
    """A kind that changes nothing would always be right."""

    def content(folder: Path) -> dict[str, bytes | None]:
        return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}

    for kind, (damage, _) in fuzz.KINDS.items():
        changed = 0
        for number in range(4):
            copy = shutil.copytree(base, tmp_path / f"{kind} {number}")
            damage(random.Random(number), copy)
            changed += content(copy) != content(base)
        assert changed, kind
