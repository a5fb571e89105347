"""Where rows of words can be cut as they are, and where each part has to be packed anew."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import float_model

from qllm_hf import QllmConfig
from qllm_hf.errors import ModelError
from qllm_hf.layout import FIELDS, row_words
from qllm_hf.packing import pack, unpack
from qllm_hf.parallel import Cut, check_cuts, find_cuts, is_inside_block
from qllm_hf.plan import make_plan


@given(bits=st.sampled_from(sorted(FIELDS)), part=st.integers(1, 40).map(lambda n: 16 * n), parts=st.integers(2, 6))
def test_words_can_be_cut_only_at_blocks(bits, part, parts):
    """Parts always have as many words each; only at blocks, or at 8 bits, do they hold the codes of their place."""
    codes = torch.randint(2**bits, (3, part * parts), dtype=torch.uint8)
    words = pack(codes, bits)
    assert words.shape[-1] == parts * row_words(part, bits)
    cut = torch.cat([unpack(piece.contiguous(), bits, part) for piece in words.chunk(parts, -1)], -1)
    if is_inside_block(part * parts, parts, bits):
        assert not torch.equal(cut, codes), "random codes of a block that was cut came out in their order"
    else:
        assert torch.equal(cut, codes)


def test_columns_in_another_order_cannot_be_cut():
    """Rows can: every process has the whole input then."""
    model = float_model("llama")

    def cuts(pattern: str) -> list[Cut]:
        config = QllmConfig(w=4, w_group_size=-1, input_orders=[pattern])
        found = find_cuts(model, make_plan(model, config, check_patterns=False))
        return [cut for cut in found if cut.entry.input_order]

    check_cuts(model, cuts("*.up_proj"), 2)
    with pytest.raises(ModelError, match=r"o_proj.* stored order \(act order\).*Sizes that work: 1\."):
        check_cuts(model, cuts("*.o_proj"), 2)
