"""Every scheme, matrix by matrix: compressed-tensors' own code reads the very numbers that were packed."""

import json

import pytest
import torch
from checkpoints import load, read_bits
from safetensors.torch import load_file
from tiny_models import LLAMA
from transformers import AutoModelForCausalLM, LlamaConfig

from qllm_hf import QllmConfig
from qllm_hf.export.run import export_checkpoint

compressors = pytest.importorskip("compressed_tensors.compressors")
quantization = pytest.importorskip("compressed_tensors.quantization")

LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama of one block whose rows hold whole groups of 32, 64 and 128; its outputs are no multiple of 32."""
    folder = tmp_path_factory.mktemp("llama")
    shape = {**LLAMA, "num_hidden_layers": 1, "hidden_size": 40, "head_dim": 32, "intermediate_size": 128}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**shape)).save_pretrained(folder)
    return folder


def decompressed(folder, layer: str) -> torch.Tensor:
    """What compressed-tensors makes of one layer, by the group of config.json that means all linear layers."""
    config = quantization.QuantizationConfig.model_validate(_config(folder))
    (group,) = [group for group in config.config_groups.values() if "Linear" in group.targets]
    tensors = {
        name.rpartition(".")[2]: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name.rpartition(".")[0] == layer
    }
    compressor = compressors.BaseCompressor.get_value_from_registry(group.format)
    return compressor.decompress(tensors, group)["weight"]


def _config(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_every_scheme_is_exact(llama, tmp_path, symmetric, dtype):
    for bits in read_bits(range(2, 9) if dtype == torch.float32 else (2, 3, 8)):
        every = (32, 64, 128, 256, -1, 0) if dtype == torch.float32 and bits in (3, 4) else (32, -1)
        for group_size in every:
            config = QllmConfig(
                w=bits,
                w_symmetric=symmetric,
                w_group_size=group_size,
                modules_to_not_convert=["*.self_attn", "*.gate_proj", "*.up_proj"],
            )
            with pytest.warns(match="of the linear weights"):
                model = load(llama, config, dtype=dtype)
            packed, out = tmp_path / "packed", tmp_path / "out"
            model.save_pretrained(packed)
            export_checkpoint(str(packed), out, overwrite=True)
            weight = decompressed(out, LAYER)
            meant = model.get_submodule(LAYER).float_matrix()
            assert weight.dtype == dtype
            assert weight.equal(meant), (bits, group_size)
            assert len(meant.unique()) > 2, "or any code would do"


def test_eight_bits_with_inputs_are_bytes(llama, tmp_path):
    config = QllmConfig(w=8, a=8, w_symmetric=True, w_group_size=-1)
    model = load(llama, config)
    model.save_pretrained(tmp_path / "packed")
    export_checkpoint(str(tmp_path / "packed"), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors[f"{LAYER}.weight"].dtype == torch.int8
    assert _config(tmp_path / "out")["format"] == "int-quantized"
    assert decompressed(tmp_path / "out", LAYER).equal(model.get_submodule(LAYER).float_matrix())
