"""Files written one tensor at a time are ordinary safetensors files."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from qllm_hf.checkpoint import INDEX, SINGLE, checkpoint_files, read_header
from qllm_hf.errors import CheckpointError
from qllm_hf.safetensors_stream import DTYPES, Item, write_items

SMALL = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool]


def item(name: str, tensor: torch.Tensor) -> Item:
    return Item(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from(SMALL), min_size=6, max_size=6),
    shard=st.integers(1, 400),
    seed=st.integers(0, 99),
)
def test_what_is_written_is_read_by_safetensors(tmp_path_factory, shapes, dtypes, shard, seed):
    folder = tmp_path_factory.mktemp("stream")
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"t{place}": torch.randint(-100, 100, shape, generator=generator).to(dtype)
        for place, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))
    }
    files = write_items(folder, [item(*pair) for pair in tensors.items()], shard_bytes=shard)
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert read.keys() == tensors.keys()
    assert all(read[name].dtype == tensors[name].dtype and read[name].equal(tensors[name]) for name in tensors)
    listed, named = checkpoint_files(folder)  # as transformers looks for them
    assert list(listed) == files
    assert named == (set() if len(files) == 1 else set(tensors))


def test_a_file_is_full_before_the_next_begins(tmp_path):
    tensors = {f"t{place}": torch.zeros(10, dtype=torch.int8) for place in range(5)}
    files = write_items(tmp_path, [item(*pair) for pair in tensors.items()], shard_bytes=20)
    assert [file.name for file in files] == [f"model-0000{place}-of-00003.safetensors" for place in (1, 2, 3)]
    assert [len(read_header(file)[0]) for file in files] == [2, 2, 1]
    assert json.loads((tmp_path / INDEX).read_text())["metadata"] == {"total_size": 50}


def test_tensors_begin_where_they_can_be_mapped(tmp_path):
    tensors = {"bytes": torch.zeros(3, dtype=torch.int8), "wide": torch.ones(2, dtype=torch.int64)}
    write_items(tmp_path, [item(*pair) for pair in tensors.items()])
    raw = (tmp_path / SINGLE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert (8 + length) % 8 == 0
    assert all(
        header[name]["data_offsets"][0] % DTYPES[header[name]["dtype"]].itemsize == 0 for name in ("bytes", "wide")
    )


def test_one_tensor_is_made_at_a_time(tmp_path):
    events: list[str] = []

    def make(name: str) -> torch.Tensor:
        events.append(name)
        return torch.zeros(4)

    items = [Item(name, torch.float32, (4,), lambda name=name: make(name)) for name in "abc"]
    write_items(tmp_path, items, progress=lambda size: events.append(f"{size} written"))
    assert events == ["a", "16 written", "b", "16 written", "c", "16 written"]


def test_what_cannot_be_written(tmp_path):
    tensor = torch.zeros(2)
    with pytest.raises(CheckpointError, match="under the name 'a'"):
        write_items(tmp_path, [item("a", tensor), item("a", tensor)])
    with pytest.raises(CheckpointError, match=r"a was to be torch.float32 \[3\] and is torch.float32 \[2\]"):
        write_items(tmp_path, [Item("a", torch.float32, (3,), lambda: tensor)])
