"""Where rows of words can be cut as they are, and where each part has to be packed anew."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.layout import FIELDS, row_words
from qllm_hf.packing import pack, unpack
from qllm_hf.parallel import is_inside_block


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
