"""Blocks of llama.cpp: every integer where its own library looks for it."""

import pytest
import torch

from qllm_hf.errors import CheckpointError
from qllm_hf.formats.gguf import BLOCKS, block_for, encode_blocks

quants = pytest.importorskip("gguf", reason="needs gguf: pip install 'qllm-hf[gguf]'").quants
every_block = pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)


def meaning(encoded: torch.Tensor, name: str) -> torch.Tensor:
    from gguf import GGMLQuantizationType

    return torch.from_numpy(quants.dequantize(encoded.numpy(), GGMLQuantizationType[name]).copy())


@every_block
def test_the_library_reads_the_same_numbers(block):
    steps = torch.randint(block.low, block.high + 1, (6, 96), dtype=torch.int16)
    steps[0, 0], steps[0, 1] = block.low, block.high
    scale = torch.rand(6, 3).half()
    encoded = encode_blocks(steps, scale, block)
    assert (encoded.dtype, encoded.shape) == (torch.uint8, (6, 3 * block.nbytes))
    expected = steps.float() * scale.float().repeat_interleave(32, 1)
    assert meaning(encoded, block.name).equal(expected)
    assert not meaning(encode_blocks(steps.flip(1), scale, block), block.name).equal(expected)


@every_block
def test_what_does_not_fit_is_refused(block):
    for value in (block.low - 1, block.high + 1):
        with pytest.raises(CheckpointError, match=f"do not fit into {block.name}"):
            encode_blocks(torch.full((1, 32), value, dtype=torch.int16), torch.ones(1, 1).half(), block)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
def test_the_smallest_block_holds_all_codes(bits, symmetric):
    block = block_for(bits, symmetric=symmetric)
    codes = range(2**bits)
    zeros = [2 ** (bits - 1)] if symmetric else codes
    low, high = min(codes) - max(zeros), max(codes) - min(zeros)
    fitting = [each for each in BLOCKS if each.low <= low and high <= each.high]
    assert block == (fitting[0] if fitting else None)
    assert (block is None) == (bits == 8 and not symmetric)
