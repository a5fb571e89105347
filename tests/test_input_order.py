"""Columns sorted by group, against plain Python, and what is no order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from qllm_hf.errors import CheckpointError
from qllm_hf.input_order import check_order, check_stored_orders, in_own_order, sorted_by_group


@st.composite
def act_orders(draw):
    """(group of each column, group size): groups are given to the columns in any order, the last one may be short."""
    columns, size = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    groups = [0] * columns
    for place, column in enumerate(draw(st.permutations(range(columns)))):
        groups[column] = place // size
    return groups, size


@given(act_orders())
def test_columns_of_a_group_become_neighbours(drawn):
    groups, size = drawn
    order = sorted_by_group(torch.tensor(groups), size)
    expected = sorted(range(len(groups)), key=lambda column: (groups[column], column))
    if expected == list(range(len(groups))):
        assert order is None
        return
    assert order.dtype == torch.int32
    assert order.tolist() == expected
    assert [groups[column] for column in order] == [place // size for place in range(len(groups))]


@given(act_orders(), st.data())
def test_groups_of_other_sizes_are_refused(drawn, data):
    groups, size = drawn
    changed = data.draw(st.integers(0, len(groups) - 1))
    other = data.draw(st.integers(-2, max(groups) + 2).filter(lambda group: group != groups[changed]))
    groups = [*groups[:changed], other, *groups[changed + 1 :]]
    with pytest.raises(ValueError, match=f"not of {size} columns each"):
        sorted_by_group(torch.tensor(groups), size)


@given(st.integers(1, 30).flatmap(lambda columns: st.permutations(range(columns))))
def test_columns_come_back(order):
    matrix = torch.arange(2 * len(order)).reshape(2, -1)
    stored = torch.stack([matrix[:, column] for column in order], 1)
    assert in_own_order(stored, torch.tensor(order, dtype=torch.int32)).equal(matrix)


def test_product_is_the_same():
    """y = x[order] @ sorted^T is x @ W^T, and without the order it is not."""
    weight, x = torch.randn(5, 24, dtype=torch.float64), torch.randn(3, 24, dtype=torch.float64)
    order = sorted_by_group(torch.randperm(24) // 4, 4)
    stored = weight[:, order]
    torch.testing.assert_close(x[:, order] @ stored.T, x @ weight.T)
    assert not torch.allclose(x @ stored.T, x @ weight.T)


WRONG = {
    "twice": torch.tensor([0, 1, 1, 3], dtype=torch.int32),
    "negative": torch.tensor([0, -1, 2, 3], dtype=torch.int32),
    "outside": torch.tensor([0, 1, 2, 4], dtype=torch.int32),
    "two dimensions": torch.tensor([[0, 1], [2, 3]], dtype=torch.int32),
    "float": torch.arange(4.0),
    "int64": torch.arange(4),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_order(wrong, tmp_path):
    good = torch.tensor([2, 0, 3, 1], dtype=torch.int32)
    assert check_order(good, "x") is good
    with pytest.raises(CheckpointError, match=r"^a\.input_order is no order of a layer's inputs, each of 0 to 3 once"):
        check_order(WRONG[wrong], "a.input_order")
    save_file({"a.input_order": good, "other": WRONG[wrong]}, tmp_path / "1.safetensors")
    save_file({"b.input_order": WRONG[wrong]}, tmp_path / "2.safetensors")
    check_stored_orders([tmp_path / "1.safetensors"], 1)
    with pytest.raises(CheckpointError, match=r"^b\.input_order is no order"):
        check_stored_orders([tmp_path / "1.safetensors", tmp_path / "2.safetensors"], 2)
    with pytest.raises(CheckpointError, match=r"names 2 layers .* hold 1 \(a\.input_order\)"):
        check_stored_orders([tmp_path / "1.safetensors"], 2)
