"""Rows that grow in place hold what torch.cat would give, and never change under another's eyes."""

import copy
import pickle

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from qllm_hf import Scheme, row_buffer
from qllm_hf.cache_layers import quantize_layer
from qllm_hf.kv_rows import KvFormat
from qllm_hf.row_buffer import STEP, compact

pytestmark = pytest.mark.oldest

HEADS = 2
KV4 = KvFormat(Scheme(kv=4))


def new_rows(tokens, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-99, 99, (batch, HEADS, tokens, 5), generator=generator, dtype=torch.int16)


def append(rows, new, buffer):
    return row_buffer.append(rows, tuple(new.shape), buffer, lambda place: place.copy_(new))


def test_contents_are_those_of_cat():
    rows, buffer, expected = torch.empty(0, dtype=torch.int16), None, None
    for step, tokens in enumerate((3, 1, 60, 1, 1, 200, 7)):
        more = new_rows(tokens, seed=step)
        rows, buffer = append(rows, more, buffer)
        expected = more if expected is None else torch.cat([expected, more], -2)
        assert rows.equal(expected)


def test_memory_grows_by_steps_and_is_copied_seldom():
    rows, buffer = append(torch.empty(0, dtype=torch.int16), new_rows(1), None)
    places = set()
    for step in range(2000):
        rows, buffer = append(rows, new_rows(1, seed=step), buffer)
        places.add(id(buffer))
        assert buffer.memory.shape[-2] % STEP == 0
        assert buffer.memory.shape[-2] <= max(STEP, rows.shape[-2] * 3 // 2 + STEP)
    assert len(places) < 12


def test_a_prompt_gets_no_room_to_spare():
    _, buffer = append(torch.empty(0, dtype=torch.int16), new_rows(1000), None)
    assert buffer.memory.shape[-2] == 1024


def test_a_view_that_is_not_the_newest_is_copied():
    first, buffer = append(torch.empty(0, dtype=torch.int16), new_rows(3), None)
    longer, buffer = append(first, new_rows(2, seed=1), buffer)
    before = longer.clone()
    other, _ = append(first, new_rows(2, seed=2), buffer)  # as after a crop, or from a copy of the layer
    assert longer.equal(before)
    assert other.equal(torch.cat([first, new_rows(2, seed=2)], -2))
    # and the newest one goes on in place
    longest, _ = append(longer, new_rows(1, seed=3), buffer)
    assert longest.data_ptr() == longer.data_ptr()


@pytest.mark.parametrize("change", ["clone", "batch", "transposed", "another start"])
def test_other_tensors_are_not_taken_for_the_newest(change):
    rows, buffer = append(torch.empty(0, dtype=torch.int16), new_rows(3), None)
    found = {
        "clone": lambda: rows.clone(),
        "batch": lambda: rows[:1],
        "transposed": lambda: rows.transpose(0, 1),
        "another start": lambda: torch.cat([rows, rows], -2)[:, :, 1:4],
    }[change]()
    more = new_rows(2, batch=found.shape[0])
    grown, _ = append(found, more, buffer)
    assert grown.equal(torch.cat([found, more], -2))
    assert grown.data_ptr() != rows.data_ptr()


def test_what_inference_mode_made_is_not_written_to_outside():
    with torch.inference_mode():
        rows, buffer = append(torch.empty(0, dtype=torch.int16), new_rows(3), None)
    grown, _ = append(rows, new_rows(2, seed=1), buffer)
    assert grown.equal(torch.cat([rows, new_rows(2, seed=1)], -2))


def test_compact_rows_have_no_room_behind_them():
    rows, _ = append(torch.empty(0, dtype=torch.int16), new_rows(3), None)
    small = compact(rows)
    assert small.equal(rows)
    assert small.untyped_storage().nbytes() == rows.numel() * 2
    assert compact(small) is small
    assert compact(None) is None


def test_a_write_that_fails_leaves_all_as_it_was():
    rows, buffer = append(torch.empty(0, dtype=torch.int16), new_rows(3), None)
    with pytest.raises(KeyError):
        row_buffer.append(rows, (2, HEADS, 1, 5), buffer, lambda _: {}["nothing"])
    longer, same = append(rows, new_rows(2, seed=1), buffer)
    assert same is buffer
    assert longer.equal(torch.cat([rows, new_rows(2, seed=1)], -2))


# --- in a layer


def filled(steps, seed=0):
    layer = quantize_layer(DynamicLayer(), KV4)
    generator = torch.Generator().manual_seed(seed)
    for tokens in steps:
        keys, values = (torch.randn(2, HEADS, tokens, 8, generator=generator) for _ in range(2))
        layer.update(keys, values)
    return layer


def test_a_layer_writes_in_place():
    layer = filled([5])
    addresses = layer._keys.data_ptr(), layer._values.data_ptr()
    for _ in range(20):
        layer.update(torch.randn(2, HEADS, 1, 8), torch.randn(2, HEADS, 1, 8))
    assert (layer._keys.data_ptr(), layer._values.data_ptr()) == addresses
    assert layer.nbytes() == layer._keys.numel() * 2 + layer._values.numel() * 2


def test_a_shallow_copy_goes_its_own_way():
    layer = filled([5, 1])
    twin = copy.copy(layer)
    layer.update(torch.ones(2, HEADS, 1, 8), torch.ones(2, HEADS, 1, 8))
    twin.update(-torch.ones(2, HEADS, 1, 8), -torch.ones(2, HEADS, 1, 8))
    assert (layer.keys[:, :, -1] > 0).all()
    assert (twin.keys[:, :, -1] < 0).all()
    assert layer.keys[:, :, :-1].equal(twin.keys[:, :, :-1])


def test_what_was_handed_out_stays_as_it_was():
    """After a crop the same places are written again, but not under a tensor that shows them."""
    layer = filled([5])
    keys, _ = layer.update(torch.ones(2, HEADS, 2, 8), torch.ones(2, HEADS, 2, 8))
    layer.crop(-2)
    layer.update(-torch.ones(2, HEADS, 2, 8), -torch.ones(2, HEADS, 2, 8))
    assert (keys[:, :, -2:] > 0).all()
    assert (layer.keys[:, :, -2:] < 0).all()


def test_a_pickle_has_no_room_to_spare():
    layer = filled([65, 1])
    assert layer._keys.untyped_storage().nbytes() > layer._keys.numel() * 2
    twin = pickle.loads(pickle.dumps(layer))
    assert twin._keys.untyped_storage().nbytes() == layer._keys.numel() * 2
    assert twin.keys.equal(layer.keys)
