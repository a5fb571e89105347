"""The result of an earlier search is applied as the study applied it, and nothing else is read from a file."""

import os
import pickle

import pytest
import torch
from tiny_models import float_model, on_one_thread, prompt
from torch import Tensor, nn

from qllm_hf import quantize_
from qllm_hf.errors import CheckpointError
from qllm_hf.loading import load_model, save_model
from qllm_hf.methods.stored import read_stored

_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)


def scale(channels: int, seed: int = 0) -> Tensor:
    """Between 1/e and e."""
    return torch.exp(torch.rand(channels, generator=torch.Generator().manual_seed(seed)) * 2 - 1)


def llama_scales(prefix: str) -> list:
    attention = tuple(f"{prefix}self_attn.{part}_proj" for part in "qkv")
    return [
        (f"{prefix}input_layernorm", attention, scale(64)),
        (f"{prefix}mlp.up_proj", (f"{prefix}mlp.down_proj",), scale(88)),
    ]


def opt_scales(prefix: str) -> list:
    attention = tuple(f"{prefix}self_attn.{part}_proj" for part in "qkv")
    return [
        (f"{prefix}self_attn_layer_norm", attention, scale(64)),
        (f"{prefix}self_attn.v_proj", (f"{prefix}self_attn.out_proj",), scale(64)),
        (f"{prefix}fc1", (f"{prefix}fc2",), scale(88)),
    ]


def bloom_scales(prefix: str) -> list:
    return [
        (f"{prefix}input_layernorm", (f"{prefix}self_attention.query_key_value",), scale(64)),
        (f"{prefix}mlp.gelu_impl", (f"{prefix}mlp.dense_4h_to_h",), scale(256)),
    ]


def falcon_scales(prefix: str) -> list:
    both = (f"{prefix}mlp.dense_h_to_4h", f"{prefix}self_attention.query_key_value")
    return [
        (f"{prefix}input_layernorm", both, scale(64)),
        (f"{prefix}mlp.act", (f"{prefix}mlp.dense_4h_to_h",), scale(256)),
    ]


FAMILIES = {
    "llama": (llama_scales, "model.layers."),
    "gemma": (llama_scales, "model.layers."),
    "opt": (opt_scales, "model.decoder.layers."),
    "bloom": (bloom_scales, "transformer.h."),
    "falcon": (falcon_scales, "transformer.h."),
}


def scales_of(name: str) -> list:
    make, blocks = FAMILIES[name]
    return [entry for index in range(2) for entry in make(f"{blocks}{index}.")]


@pytest.fixture
def write(tmp_path):
    def write(content, name: str = "result.pt") -> str:
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return write


def apply(name: str, file: str, scheme: str = "W8g32", dtype: torch.dtype = torch.float32, **options):
    model = float_model(name)
    for parameter in model.parameters():  # and no buffer: those of rotary embeddings are made in float32
        parameter.data = parameter.data.to(dtype)
    return quantize_(model, scheme, method="awq", method_options={"stored": file}, **options)


@torch.no_grad()
def logits(model, name: str) -> Tensor:
    return model(prompt(name), use_cache=False).logits.float()


@pytest.mark.parametrize("name", FAMILIES)
def test_moved_scales_leave_the_model_what_it_was(name, write, tmp_path):
    model = apply(name, write({"scale": scales_of(name), "clip": []}))
    exact = logits(float_model(name), name)
    plain = (logits(quantize_(float_model(name), "W8g32"), name) - exact).abs().max()
    assert 0 < (logits(model, name) - exact).abs().max() < 3 * plain
    assert not torch.equal(logits(model, name), logits(quantize_(float_model(name), "W8g32"), name))
    half = scales_of(name)
    half[0] = (half[0][0], half[0][1][:-1], half[0][2]) if len(half[0][1]) > 1 else (half[0][0], (), half[0][2])
    wrong = apply(name, write({"scale": half, "clip": []}, "half.pt"))
    assert (logits(wrong, name) - exact).abs().max() > 10 * plain, "a reader that is left out would be noticed"


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_an_ordinary_packed_model(name, write, tmp_path):
    model = apply(name, write({"scale": scales_of(name), "clip": []}), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()} == {torch.bfloat16}
    again = load_model(str(save_model(model, None, tmp_path / "saved")))
    assert torch.equal(logits(again, name), logits(model, name))
    config = again.hf_quantizer.quantization_config
    assert config.method_options == {"stored": "result.pt"}, "no path of this machine"
    behind_gelu = {"bloom": ["transformer.h.*.mlp.dense_4h_to_h"], "falcon": ["transformer.h.*.mlp.dense_4h_to_h"]}
    assert config.input_scales == behind_gelu.get(name)


LAYER = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("group", "groups"), [(32, 3), (-1, 1)])
def test_weights_are_clipped_to_the_stored_limits(write, symmetric, group, groups):
    model = float_model("llama")
    weight = model.get_submodule(LAYER).weight.detach()
    size = group if group > 0 else 88
    padded = nn.functional.pad(weight, (0, groups * size - 88)).view(64, groups, size)
    limits = padded.abs().amax(-1, keepdim=True) * torch.linspace(0.3, 1.0, 64).view(64, 1, 1)
    file = write({"scale": [], "clip": [(LAYER, limits)]})
    options = {"w_symmetric": symmetric, "w_group_size": group}
    packed = apply("llama", file, "W4", **options).get_submodule(LAYER).packed("weight")
    steps = packed.scale.unsqueeze(-1)
    decoded = nn.functional.pad(packed.decode(), (0, groups * size - 88)).view(64, groups, size)
    assert (decoded.abs() <= limits + (steps if symmetric else steps / 2) + 1e-6).all()
    inside = padded.abs() <= limits
    assert ((decoded - padded).abs()[inside] <= (0.5001 * steps).expand_as(padded)[inside] + 1e-6).float().mean() > 0.98
    plain = quantize_(float_model("llama"), "W4", **options).get_submodule(LAYER).packed("weight").decode()
    plain = nn.functional.pad(plain, (0, groups * size - 88)).view(64, groups, size)
    assert (plain.abs() > limits + steps).any(), "without limits there is more"


def test_limits_of_one_layer_change_no_other(write):
    limits = torch.full((64, 3, 1), 0.05)
    clipped = apply("llama", write({"scale": [], "clip": [(LAYER, limits)]}), "W4g32")
    plain = quantize_(float_model("llama"), "W4g32")
    different = [key for key, value in clipped.state_dict().items() if not torch.equal(value, plain.state_dict()[key])]
    assert different
    assert all(key.startswith(LAYER) for key in different)


def refused(write, match: str, scale_entries=(), clip=(), name: str = "llama", **options) -> None:
    model = float_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    file = write({"scale": list(scale_entries), "clip": list(clip)})
    with pytest.raises(CheckpointError, match=match):
        quantize_(model, "W8g32", method="awq", method_options={"stored": file}, **options)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "nothing has changed"


def test_the_result_of_another_model_is_refused(write):
    refused(
        write,
        r"result of another model: there is no transformer\.h\.0\.input_layernorm.*Search again",
        scales_of("bloom"),
    )
    refused(write, "the result of another model", scales_of("llama"), name="opt")


def test_another_width_is_refused(write):
    norm, layers, _ = scales_of("llama")[0]
    refused(write, r"q_proj reads 64 channels, the file has scales \(32,\)", [(norm, layers, scale(32))])
    refused(write, r"q_proj reads 64 channels, the file has scales \(1, 64\)", [(norm, layers, scale(64)[None])])


def test_a_reader_that_is_no_linear_layer_is_refused(write):
    refused(write, "mlp is no linear layer", [("model.layers.0.input_layernorm", ("model.layers.0.mlp",), scale(64))])


def test_a_norm_of_another_width_is_refused(write):
    refused(write, "has 64 channels", [("model.layers.0.input_layernorm", (LAYER,), scale(88))])


def test_values_that_fewer_heads_make_are_refused(write):
    """Each value head is read several times: one scale for each column cannot be taken by fewer rows."""
    entry = ("model.layers.0.self_attn.v_proj", ("model.layers.0.self_attn.o_proj",), scale(64))
    refused(write, r"v_proj has 32 rows, the file has scales \(64,\)", [entry])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_no_positive_numbers_are_refused(write, value):
    bad = scale(64)
    bad[5] = value
    norm, layers, _ = scales_of("llama")[0]
    refused(write, "the scales of model.layers.0.input_layernorm are not all positive", [(norm, layers, bad)])


def test_another_group_size_is_refused(write):
    limits = torch.ones(64, 1, 1)
    refused(write, r"64 rows in 3 groups of 32, the file has limits \(64, 1, 1\).*w_group_size", clip=[(LAYER, limits)])


def test_limits_of_a_layer_that_is_not_quantized_are_refused(write):
    clip = [(LAYER, torch.ones(64, 3, 1))]
    refused(
        write, "down_proj is no quantized layer", clip=clip, modules_to_not_convert=["model.layers.1.mlp.down_proj"]
    )


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*missing\.pt"):
        apply("llama", str(tmp_path / "missing.pt"))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], r"must hold 'scale' and 'clip' \(found: list\)"),
        ({"scale": []}, r"must hold 'scale' and 'clip' \(found: scale\)"),
        ({"scale": [1], "clip": []}, "'scale' must list"),
        ({"scale": [("a", ("b",), 3.0)], "clip": []}, "'scale' must list"),
        ({"scale": [], "clip": [("a",)]}, "'scale' must list"),
        ({"scale": None, "clip": []}, "'scale' must list"),
    ],
)
def test_another_content_is_refused(write, content, match):
    with pytest.raises(CheckpointError, match=match):
        apply("llama", write(content))


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_file_is_executed(tmp_path, write, legacy):
    target = tmp_path / "executed"
    content = {"scale": [Malicious(str(target))], "clip": []}
    if legacy:
        (tmp_path / "result.pt").write_bytes(pickle.dumps(content))
        file = str(tmp_path / "result.pt")
    else:
        file = write(content)
    with pytest.raises(
        CheckpointError, match=r"no AWQ result that can be read safely.*lists, strings and tensors only"
    ):
        apply("llama", file)
    assert not target.exists()
    torch.load(write({"scale": [Malicious(str(target))]}), weights_only=False)
    assert target.exists(), "it would have been"


@pytest.mark.parametrize(
    "content", [b"just text\n", b"", b"PK\x03\x04", b"\x80\x02", bytes(range(256)), b"{}", b"cos\n"]
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "result.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no AWQ result that can be read safely"):
        read_stored(path)


def test_a_file_that_was_cut_is_refused(tmp_path, write):
    path = tmp_path / "result.pt"
    write({"scale": scales_of("llama"), "clip": []})
    whole = path.read_bytes()
    for size in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_stored(path)
    path.write_bytes(whole)
    assert len(read_stored(path).scales) == 4


def test_a_scale_of_a_layer_that_stays_in_floating_point_is_applied_too(write):
    """Behind an activation function a packed layer multiplies its input; a float one takes nothing."""
    kept = ["*.dense_4h_to_h"]
    with pytest.warns(match="of the linear weights are quantized"):
        model = apply("bloom", write({"scale": scales_of("bloom"), "clip": []}), modules_to_not_convert=kept)
    exact = logits(float_model("bloom"), "bloom")
    assert (logits(model, "bloom") - exact).abs().max() < 0.05 * exact.abs().max()
    assert model.hf_quantizer.quantization_config.input_scales is None
