"""An imported checkpoint holds the integers it was made from, and computes what they mean."""

import json

import pytest
import torch
from checkpoints import load, logits
from peer_checkpoints import CASES, EVEN, Case, ct_config, gptq, save_shards, write_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import float_model, prompt

import qllm_hf
from qllm_hf.importing.convert import import_checkpoint
from qllm_hf.nn import PackedExperts, PackedLinear
from qllm_hf.scheme import Spec
from qllm_hf.uniform import fake_quantize

# Few enough bytes for several files, and for layers whose tensors are in two of them.
SHARD = 40_000
SCHEMES = {
    "gptq symmetric": ("W4g32", True, "gptq"),
    "gptq with borrow": ("W4g32", False, "gptq"),
    "gptq 3 bits": ("W3g32", False, "gptq"),
    "gptq_v2 2 bits": ("W2g32", False, "gptq"),
    "gptq 8 bits of channels": ("W8g-1", True, "gptq"),
    "gptq in act order": ("W4g32", False, "gptq"),
    "gptq in act order of channels": ("W8g16", True, "gptq"),
    "pack-quantized in act order": ("W3g32", False, "rtn"),
    "gptq experts": ("W4g32", False, "gptq"),
    "awq": ("W4g32", False, "awq"),
    "auto-round": ("W4g32", True, "rtn"),
    "pack-quantized experts": ("W4g32", True, "rtn"),
    "pack-quantized 3 bits": ("W3g32", False, "rtn"),
    "int-quantized": ("W8g-1", False, "rtn"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{case: (checkpoint, what it means in floats, imported)}."""
    root = tmp_path_factory.mktemp("peers")
    made = {}

    def get(name: str):
        if name not in made:
            places = tuple(root / name / kind for kind in ("peer", "float", "ours"))
            write_checkpoint(CASES[name], places[0], places[1])
            import_checkpoint(places[0], places[2], shard_bytes=SHARD)
            made[name] = places
        return made[name]

    return get


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every packed weight in float32, in the orientation of the model."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            matrix = module.float_matrix(torch.float32)
            found[f"{name}.weight"] = matrix.T if module.transposed else matrix
        elif isinstance(module, PackedExperts):
            found |= {f"{name}.{weight}": module.unpack(weight, torch.float32) for weight in module.weight_specs}
    return found


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_the_same(folders, name):
    _, floats, ours = folders(name)
    imported, meant = load(ours), load(floats)
    found = weights(imported)
    expected = meant.state_dict()
    assert found, "nothing was packed"
    for weight, matrix in found.items():
        assert matrix.equal(expected[weight]), weight
    family = CASES[name].family
    difference = (logits(imported, family) - logits(meant, family)).abs().max()
    assert difference < 1e-4
    scheme, symmetric, method = SCHEMES[name]
    config = imported.config.quantization_config
    assert (str(config.scheme), config.w_symmetric, config.method) == (scheme, symmetric, method)
    assert len(list(ours.glob("*.safetensors"))) > 1
    assert qllm_hf.report(imported).linear_coverage == 1.0


@pytest.mark.oldest
def test_generates_the_same_tokens(folders):
    _, floats, ours = folders("gptq experts")
    options = {"max_new_tokens": 12, "do_sample": False}
    found, expected = (load(folder).generate(prompt("mixtral"), **options) for folder in (ours, floats))
    assert found.equal(expected)


def test_scales_keep_their_bits(folders):
    peer, _, ours = folders("awq")
    stored = {}
    for folder in (peer, ours):
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                stored |= {(folder.name, key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    layer = "model.layers.1.mlp.up_proj"
    scales, ours_scale = stored["peer", f"{layer}.scales"], stored["ours", f"{layer}.weight_scale"]
    assert ours_scale.dtype == scales.dtype == torch.float16
    assert ours_scale.equal(scales.T)


def test_float_layers_and_sizes_that_differ(tmp_path):
    """A module that is not in the files as integers stays, one with other bits and groups is an override."""
    case = Case(
        "llama", 4, 32, True, lambda x: gptq(x, 8 if x.codes.max() > 15 else 4, first=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2", "dynamic": {}}, EVEN,
    )  # fmt: skip
    write_checkpoint(case, tmp_path / "peer", tmp_path / "float")
    eight = Case("llama", 8, 48, True, lambda x: gptq(x, 8, first=False), case.config, EVEN)
    write_checkpoint(eight, tmp_path / "eight", tmp_path / "eight float")
    _mix(tmp_path, "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj")
    imported = import_checkpoint(tmp_path / "peer", tmp_path / "ours")
    assert imported.config.overrides == {"model.layers.1.mlp.down_proj": "W8g48"}
    assert imported.config.modules_to_not_convert == ["model.layers.0.self_attn.o_proj"]
    assert (logits(load(tmp_path / "ours")) - logits(load(tmp_path / "float"))).abs().max() < 1e-4


def _mix(root, other: str, kept: str) -> None:
    """Give one layer the integers of another checkpoint, and another its float weight."""
    peer, eight = ({k: v for f in (root / n).glob("*.safetensors") for k, v in load_file(f).items()}
                   for n in ("peer", "eight"))  # fmt: skip
    meaning, eight_meaning = (load_file(root / n / "model.safetensors") for n in ("float", "eight float"))
    peer |= {name: value for name, value in eight.items() if name.startswith(other)}
    peer = {name: value for name, value in peer.items() if not name.startswith(kept)}
    peer[f"{kept}.weight"] = meaning[f"{kept}.weight"]
    meaning[f"{other}.weight"] = eight_meaning[f"{other}.weight"]
    save_shards(peer, root / "peer")
    save_file(meaning, root / "float" / "model.safetensors", metadata={"format": "pt"})


def test_dtype_in_which_nothing_is_rounded(folders, tmp_path):
    peer, _, _ = folders("gptq symmetric")
    imported = import_checkpoint(peer, tmp_path / "same")
    assert json.loads((tmp_path / "same" / "config.json").read_text())["dtype"] == "float32"
    assert imported.notes == ()
    copy = tmp_path / "bfloat16"
    copy.mkdir()
    for path in peer.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    (note,) = import_checkpoint(copy, tmp_path / "wider").notes
    assert "float16" in note and "bfloat16" in note
    assert json.loads((tmp_path / "wider" / "config.json").read_text())["dtype"] == "float32"


def test_compressed_tensors_own_files(tmp_path):
    """What the library itself compressed, decompressed by itself."""
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors: pip install 'qllm-hf[test]'")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from transformers.utils.quantization_config import CompressedTensorsConfig

    model = float_model("llama")
    description = ct_config(4, strategy="group", symmetric=False, size=8)  # 8 divides all rows
    config = QuantizationConfig(**{**description, "quantization_status": "frozen"})
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            groups = module.weight.data.unflatten(-1, (-1, 8))
            low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
            scale = (high - low) / 15
            module.weight_scale.data.copy_(scale)
            module.weight_zero_point.data.copy_((-8 - low / scale).round().clamp(-8, 7))
    ModelCompressor(quantization_config=config).compress_model(model)
    model.save_pretrained(tmp_path / "peer")
    stored = json.loads((tmp_path / "peer" / "config.json").read_text())
    stored["quantization_config"] = description
    (tmp_path / "peer" / "config.json").write_text(json.dumps(stored))
    import_checkpoint(tmp_path / "peer", tmp_path / "ours")
    theirs = load(tmp_path / "peer", CompressedTensorsConfig(dequantize=True))
    assert (logits(load(tmp_path / "ours")) - logits(theirs)).abs().max() < 1e-4


def test_which_inputs_have_the_same_formula():
    """Per token with zero points: every number is theirs. Without: nearly none is, so that is refused."""
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors: pip install 'qllm-hf[test]'")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize as theirs
    from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp

    x = torch.randn(4, 48, 256)
    for symmetric in (False, True):
        how = QuantizationArgs(num_bits=8, type="int", symmetric=symmetric, strategy="token", dynamic=True)
        scale, zero_point = compute_dynamic_scales_and_zp(x, how, torch.nn.Identity())
        expected = theirs(x=x, scale=scale, zero_point=zero_point, args=how)
        off = (fake_quantize(x, Spec(8, -1, symmetric)) - expected).abs() > 1e-3 * scale
        assert off.float().mean() > 0.9 if symmetric else not off.any()
