"""The table of readers, and who is said to read what."""

from itertools import product

import pytest
from result_tables import rows

from qllm_hf.errors import ModelError
from qllm_hf.export.groups import Group, group_of, quantization_config
from qllm_hf.export.readers import DEQUANTIZE, READERS, TABLE, TRANSFORMERS, VLLM, VLLM_CPU, WANTED
from qllm_hf.export.reading import Reading, check_readers, readings
from qllm_hf.export.stored import Piece, StoredWeight
from qllm_hf.plan import Entry
from qllm_hf.scheme import PER_TENSOR, Spec

W4 = Group(4, True, 64)
W8 = Group(8, True, 64)


def weight(module: str, kind: str = "linear", **options) -> StoredWeight:
    entry = Entry(f"{module}.weight", module, kind, (64, 128), options.pop("spec", Spec(4, 64)), None, **options)
    return StoredWeight(entry, entry.name, (Piece(entry.name, None, slice(0, 64), False),))


def of(*layers: tuple[str, Group], kind: str = "linear", kept: tuple[str, ...] = ()) -> dict[str, Reading]:
    return readings([weight(name, kind) for name, _ in layers], [group for _, group in layers], kept)


def test_every_row_has_a_cell_for_every_reader():
    assert all(cells.keys() == READERS.keys() for cells in TABLE.values())
    assert all(set(names) <= READERS.keys() for names in WANTED.values())
    unexplained = [
        (row, name)
        for row, cells in TABLE.items()
        for name, cell in cells.items()
        if cell.outcome == "no" and cell.known != "not run" and not cell.note
    ]
    assert not unexplained, "who says no says why"


def test_every_scheme_has_a_row():
    inputs = [(None, False), (8, True), (8, False), (4, True), (4, False), (6, True)]
    for bits, symmetric, size, (a_bits, a_symmetric) in product(range(2, 9), (True, False), (None, 32), inputs):
        found = of(("mlp.up_proj", Group(bits, symmetric, size, a_bits, a_symmetric)))
        # transformers takes no zero points packed, and without packing it does not quantize inputs
        assert (found[TRANSFORMERS].outcome == "no") == (not symmetric)
        assert found[DEQUANTIZE].outcome == ("weights" if a_bits else "same")


def test_the_table_says_what_was_measured():
    """Every checkpoint of benchmarks/export.py, in every reader that it was given to."""
    columns = {TRANSFORMERS: "default", DEQUANTIZE: "dequantize", VLLM_CPU: "vllm"}
    measured = rows("export")
    assert len(measured) > 100
    for row in measured:
        size, a_bits = int(row["w_group_size"]), int(row["a"])
        group = Group(
            int(row["w"]),
            row["w_symmetric"] == "True",
            size if size > 0 else None,
            a_bits if a_bits < 16 else None,
            row["a_symmetric"] == "True",
        )
        found = of(("0.o_proj", group))
        for reader, column in columns.items():
            if reader == VLLM_CPU and row["dtype"] == "float32" and group.bits == 4:
                continue  # as its note says
            failed = row[column].startswith("error")
            assert failed == (found[reader].outcome == "no"), (reader, str(group), row["dtype"])
            assert found[reader].known == "ran"
        assert float(row["max_dw"]) == float(row["dequantize"]) == float(row["float_export"]) == 0
        if found[TRANSFORMERS].outcome == "same":
            assert float(row["default"]) == 0


def test_the_worst_row_counts():
    one = of(("0.o_proj", W4), ("0.down_proj", W4))
    assert {reading.outcome for reading in one.values()} == {"same"}
    two = of(("0.o_proj", W4), ("0.down_proj", W8))
    assert [two[name].outcome for name in (TRANSFORMERS, DEQUANTIZE, VLLM, VLLM_CPU)] == ["same", "no", "same", "no"]
    assert "takes the first group's bits" in two[DEQUANTIZE].notes[0]


@pytest.mark.parametrize(("other", "kept"), [(W8, ()), (None, ("0.k_proj",))])
def test_layers_that_are_merged_have_to_agree(other, kept):
    layers = [("0.q_proj", W4)] + ([("0.k_proj", other)] if other else [])
    assert of(*layers, kept=kept)[VLLM].outcome == "no"
    alone = [("0.q_proj", W4)] + ([("0.o_proj", other)] if other else [])
    assert of(*alone, kept=("0.o_proj",) if kept else ())[VLLM].outcome == "same"


def test_the_nearest_that_works_is_named():
    groups = [Group(4, False, 128, 8, False)]
    found = of(("0.o_proj", groups[0]))
    check_readers(found, None, groups)
    check_readers(found, "transformers", groups)
    with pytest.raises(ModelError, match=r"Nearest that vllm takes, .*--scheme W4g128A8 --a-symmetric\."):
        check_readers(found, "vllm", groups)
    with pytest.raises(ModelError, match=r"Nearest that vllm-cpu takes, .*--scheme W8g-1A8 --w-symmetric --a-symm"):
        check_readers(found, "vllm-cpu", groups)
    groups = [Group(3, True, 64)]
    with pytest.raises(ModelError, match=r"kernels take 4 bits.*can be read by transformers.*W4g64 --w-symmetric"):
        check_readers(of(("0.o_proj", groups[0])), "vllm-cpu", groups)
    nobody = {name: Reading("no", "ran", ("nothing works",)) for name in READERS}
    with pytest.raises(ModelError, match="no reader takes this checkpoint"):
        check_readers(nobody, None, groups)


def test_a_whole_row_is_a_channel():
    for spec in (Spec(4, 128), Spec(4, 256), Spec(4, -1), Spec(4, PER_TENSOR)):
        assert group_of(weight("up_proj", spec=spec).entry) == Group(4, False, None)
    assert group_of(weight("up_proj", spec=Spec(4, 32)).entry) == Group(4, False, 32)
    with pytest.raises(ModelError, match="--w-group-size 32 or 64 or per channel"):
        group_of(weight("up_proj", spec=Spec(4, 48)).entry)


def test_groups_of_config_json():
    layers = [(weight("0.up_proj"), W4), (weight("0.gate_proj"), W4), (weight("lm_head", is_head=True), W4)]
    config = quantization_config([*layers, (weight("0.down_proj"), W8)], ["1.up_proj"])
    first, second = config["config_groups"].values()
    assert (first["targets"], second["targets"]) == (["Linear", "lm_head"], ["0.down_proj"])
    assert config["ignore"] == ["1.up_proj"]
    experts = [(weight("0.experts", "experts"), W8)] * 9
    first, second = quantization_config([*layers, *experts], [])["config_groups"].values()
    assert {tuple(first["targets"]), tuple(second["targets"])} == {("Linear", "lm_head"), ("re:.*experts.*",)}
