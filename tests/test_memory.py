"""The float model is never whole in memory: the claim of benchmarks/loading.py, on a smaller checkpoint."""

import sys
from pathlib import Path

import pytest
from loading import largest_tensor_mb, make_checkpoint, measure_in_process

SHAPE = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=8,
    num_attention_heads=16,
    vocab_size=4096,
    tie_word_embeddings=False,
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_peak_of_loading_and_size_on_disk(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "float", SHAPE, "100MB")
    float_mb = sum(file.stat().st_size for file in (tmp_path / "float").glob("*.safetensors")) / 1e6
    assert len(list((tmp_path / "float").glob("*.safetensors"))) > 3
    result = measure_in_process(tmp_path / "float", "W4", tmp_path / "packed")
    # what stays, three times the largest tensor, and what the allocator keeps
    allowed = result["packed_model_mb"] + 3 * largest_tensor_mb(SHAPE) + 80
    assert result["peak_over_baseline_mb"] < allowed < 0.75 * float_mb
    assert result["bits_per_weight_disk"] == pytest.approx(result["bits_per_weight_theory"], rel=0.01)
