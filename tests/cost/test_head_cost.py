"""A packed output head in the cost model: bytes as they are in memory, and which of them a token reads."""

import pytest
import torch
from tiny_models import tiny_config
from transformers import AutoModelForCausalLM

from qllm_hf import QllmConfig, quantize_
from qllm_hf.cost.model import cost_of
from qllm_hf.cost.roofline import _weight_bytes
from qllm_hf.reporting.tensors import parameter_bytes

EMBEDDING = 256 * 64 * 4


def floats(tied: bool):
    config = tiny_config("llama")
    config.tie_word_embeddings = tied
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_weights_and_what_is_read_of_them(tied):
    model = floats(tied)
    plain, float_head, packed_head = (
        cost_of(model, config)
        for config in (
            None,
            QllmConfig(w=4, a=8, w_group_size=32),
            QllmConfig(w=4, a=8, w_group_size=32, quantize_head=True),
        )
    )
    assert packed_head.params == float_head.params == plain.params
    config = QllmConfig(w=4, a=8, w_group_size=32, quantize_head=True)
    assert packed_head.weight_bytes == parameter_bytes(quantize_(model, config))
    # a tied embedding is read by the head; where the head is packed, only rows of it are looked up
    assert float_head.work.lookup_bytes == (0 if tied else EMBEDDING)
    assert packed_head.work.lookup_bytes == EMBEDDING
    head = 256 * 64 * (4 + 40 / 32) / 8
    assert _weight_bytes(float_head, 1) - _weight_bytes(packed_head, 1) == EMBEDDING - head
    assert (packed_head.weight_bytes > float_head.weight_bytes) == tied
    # it is multiplied in floating point, whatever the inputs of the other layers
    for name in ("head_products", "float_products", "integer_products"):
        assert getattr(packed_head.work, name) == getattr(float_head.work, name)
    assert packed_head.work.head_products == 256 * 64
