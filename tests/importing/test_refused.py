"""What cannot be taken over exactly is refused, with the tensor and the reason, and nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peer_checkpoints import CASES, ct_config, save_shards, write_checkpoint
from safetensors.torch import load_file

from qllm_hf.errors import CheckpointError, ConfigError, QllmError
from qllm_hf.importing.convert import import_checkpoint

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """{case: its folder}, written once."""
    root = tmp_path_factory.mktemp("refused")
    names = (
        "gptq symmetric",
        "gptq with borrow",
        "awq",
        "int-quantized",
        "pack-quantized experts",
        "pack-quantized 3 bits",
    )
    for name in names:
        write_checkpoint(CASES[name], root / name, root / f"{name} float")
    return {name: root / name for name in names}


@pytest.fixture
def spoiled(checkpoints, tmp_path):
    """A copy of a checkpoint with other tensors, or another config."""

    def make(
        name: str, tensors: Callable[[Tensors], None] | None = None, config: Callable[[dict], None] | None = None
    ) -> Path:
        folder = tmp_path / "spoiled"
        held = {k: v for file in checkpoints[name].glob("*.safetensors") for k, v in load_file(file).items()}
        stored = json.loads((checkpoints[name] / "config.json").read_text())
        if tensors is not None:
            tensors(held)
        if config is not None:
            config(stored)
        save_shards(held, folder)
        (folder / "config.json").write_text(json.dumps(stored))
        return folder

    return make


def refused(folder: Path, *parts: str, **options: str) -> None:
    out = folder.parent / "ours"
    before = set(folder.parent.iterdir())
    with pytest.raises(CheckpointError) as error:
        import_checkpoint(folder, out, **options)
    for part in parts:
        assert part in str(error.value), str(error.value)
    assert set(folder.parent.iterdir()) == before, "something was left behind"


def quantization(**changes: object) -> Callable[[dict], None]:
    return lambda stored: stored["quantization_config"].update(changes)


def targets(*patterns: object) -> Callable[[dict], None]:
    """One group of a compressed-tensors config, for layers of other names."""
    groups = ct_config(8, strategy="channel", symmetric=False, form="int-quantized")["config_groups"]
    groups["group_0"]["targets"] = list(patterns)
    return quantization(config_groups=groups)


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("awq", lambda stored: stored.pop("quantization_config"), ["is a float model", "qllm-hf quantize"]),
        ("awq", quantization(quant_method="qllm"), ["of qllm_hf already"]),
        ("awq", quantization(quant_method="fp8"), ["'fp8'", "awq, gptq, auto-round, compressed-tensors"]),
        ("awq", quantization(version="gemv"), ["'gemv'", "'gemm'"]),
        ("gptq symmetric", quantization(checkpoint_format="marlin"), ["'marlin'", "gptq_v2"]),
        (
            "gptq symmetric",
            quantization(quant_method="auto-round", packing_format="auto_round:exl"),
            ["auto_round:exl"],
        ),
        ("gptq symmetric", quantization(quant_method="auto-round", data_type="mx_fp"), ["mx_fp"]),
        ("gptq with borrow", quantization(meta={}), ["down_proj", "readers disagree", "gptq_v2"]),
        ("int-quantized", quantization(transform_config={"a": 1}), ["transform_config"]),
        (
            "int-quantized",
            quantization(config_groups=ct_config(8, strategy="block", symmetric=True)["config_groups"]),
            ["'block'"],
        ),
        ("int-quantized", quantization(config_groups={"W8A16": ["Linear"]}), ["preset"]),
        ("int-quantized", targets("re:(.*a)*b"), ["could take for ever"]),
        ("int-quantized", targets("re:" + ".*" * 6), ["could take for ever"]),
        ("int-quantized", targets("re:("), ["config.json is damaged"]),
        ("int-quantized", targets(3), ["config.json is damaged"]),
        ("awq", quantization(bits="4"), ["config.json is damaged", "bits='4'"]),
        ("gptq symmetric", quantization(dynamic=[1]), ["config.json is damaged"]),
        ("gptq symmetric", lambda stored: stored.update(quantization_config=["x"]), ["no object"]),
        ("gptq symmetric", lambda stored: stored.update(num_hidden_layers=10**9), ["num_hidden_layers=1000000000"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_other_formats(spoiled, name, change, parts):
    refused(spoiled(name, config=change), *parts)


def test_float8_by_the_name_of_its_format(spoiled):
    groups = ct_config(8, strategy="channel", symmetric=True, form="float-quantized")["config_groups"]
    groups["group_0"]["weights"]["type"] = "float"
    refused(spoiled("int-quantized", config=quantization(config_groups=groups)), "float-quantized", "'float'")


def less(part: str, rows: slice = slice(None), columns: slice = slice(None)) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"{LAYER}.{part}"] = tensors[f"{LAYER}.{part}"][rows, columns].contiguous()

    return change


def without(part: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(f"{LAYER}.{part}")


def without_expert(tensors: Tensors) -> None:
    for name in [name for name in tensors if "layers.1.mlp.experts.2.up_proj" in name]:
        del tensors[name]


def group_of_first_column(group: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"{LAYER}.g_idx"][0] = group

    return change


def act_order(experts: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if experts in name and name.endswith("weight_packed")]:
            columns = int(tensors[name.replace("packed", "shape")][1])
            tensors[name.replace("packed", "g_idx")] = (torch.arange(columns) // 32).flip(0)

    return change


def words_of_whole_codes(tensors: Tensors) -> None:
    """Ten codes of 3 bits to a word, and two bits empty."""
    rows, columns = tensors[f"{LAYER}.weight_shape"].tolist()
    tensors[f"{LAYER}.weight_packed"] = torch.zeros(rows, -(-columns // 10), dtype=torch.int32)


def spoil_scale(tensors: Tensors) -> None:
    tensors[f"{LAYER}.scales"][0, 0] = float("nan")


def scale_of_activation(tensors: Tensors) -> None:
    tensors["model.layers.0.mlp.act_fn.scales"] = torch.ones(88)


def with_part(part: str, value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"{LAYER}.{part}"] = torch.full((88,), value)

    return change


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("gptq symmetric", without("scales"), [f"{LAYER}.scales", "Copy the checkpoint again"]),
        ("gptq symmetric", less("scales", slice(1)), [LAYER, "qzeros"]),
        ("gptq symmetric", less("qweight", slice(7)), [LAYER, "no dense stream of 2, 3, 4, 8 bits"]),
        (
            "pack-quantized 3 bits",
            words_of_whole_codes,
            [LAYER, "no dense stream of 3 bits: compressed-tensors before 0.18"],
        ),
        ("gptq symmetric", less("qweight", slice(None), slice(80)), [LAYER, "scales has the shape"]),
        ("gptq symmetric", spoil_scale, [LAYER, "NaN"]),
        ("gptq symmetric", group_of_first_column(1), [f"{LAYER}.g_idx", "not of 32 columns each"]),
        ("gptq symmetric", group_of_first_column(2), [f"{LAYER}.g_idx", "not of 32 columns each"]),
        ("gptq symmetric", group_of_first_column(-1), [f"{LAYER}.g_idx", "not of 32 columns each"]),
        (
            "pack-quantized experts",
            act_order(".experts."),
            ["experts.down_proj", "rows of experts", "desc_act=False"],
        ),
        ("pack-quantized experts", act_order(".experts.2.up_proj"), ["8 layers", "experts.gate_up_proj", "one order"]),
        ("gptq symmetric", with_part("rotation", 1.0), [f"{LAYER}.rotation", "not known"]),
        ("gptq symmetric", with_part("bias", 1.0), [f"{LAYER}.bias"]),
        ("awq", less("qweight", slice(60)), [LAYER, "qweight has the shape [60, 11], and [64, 11]"]),
        ("awq", scale_of_activation, ["act_fn.scales", "no linear layer"]),
        (
            "pack-quantized experts",
            without_expert,
            ["model.layers.1.mlp.experts.gate_up_proj", "4 of ", "3 of "],
        ),
        ("int-quantized", less("weight", slice(80)), [LAYER, "weight_scale has the shape [88, 1]"]),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", None),
)
def test_tensors_that_do_not_fit(spoiled, name, change, parts):
    refused(spoiled(name, tensors=change), *parts)


def test_bias_of_zeros_is_no_loss(spoiled):
    """AutoGPTQ wrote one for every layer, whether the model has it or not."""
    folder = spoiled("gptq symmetric", tensors=with_part("bias", 0.0))
    import_checkpoint(folder, folder.parent / "ours")
    assert f"{LAYER}.bias" not in json.loads((folder.parent / "ours" / "config.json").read_text())


def test_cut_file(spoiled):
    folder = spoiled("awq")
    file = next(folder.glob("*2.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])
    refused(folder, file.name, "cut short")


INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


@pytest.mark.parametrize(
    ("inputs", "part"),
    [
        (INPUTS, "max|x| / 127.5 there and max|x| / 127 here"),
        ({**INPUTS, "symmetric": False, "dynamic": False, "strategy": "tensor"}, "fixed beforehand"),
        ({**INPUTS, "type": "float"}, "cannot be done here"),
    ],
    ids=["symmetric", "static", "float"],
)
def test_inputs_of_another_formula(spoiled, inputs, part):
    groups = ct_config(8, strategy="channel", symmetric=False, form="int-quantized", inputs=inputs)["config_groups"]
    folder = spoiled("int-quantized", config=quantization(config_groups=groups))
    refused(folder, part, "--activations float")
    out = folder.parent / "ours"
    assert import_checkpoint(folder, out, activations="float").config.scheme.a == 16
    if inputs["type"] == "int":
        scheme = import_checkpoint(folder, out, activations="ours", overwrite=True).config.scheme
        assert (scheme.a, scheme.a_symmetric) == (8, inputs["symmetric"])


def test_inputs_of_the_same_formula(spoiled):
    inputs = {**INPUTS, "symmetric": False}
    groups = ct_config(8, strategy="channel", symmetric=False, form="int-quantized", inputs=inputs)["config_groups"]
    folder = spoiled("int-quantized", config=quantization(config_groups=groups))
    assert str(import_checkpoint(folder, folder.parent / "ours").config.scheme) == "W8g-1A8"


def test_places(checkpoints, tmp_path):
    source = checkpoints["awq"]
    with pytest.raises(CheckpointError, match="replaced by its imported form"):
        import_checkpoint(source, source, overwrite=True)
    with pytest.raises(CheckpointError, match="hf download owner/name"):
        import_checkpoint("owner/name", tmp_path / "ours")
    with pytest.raises(ConfigError, match="same, ours, float"):
        import_checkpoint(source, tmp_path / "ours", activations="theirs")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(QllmError, match="not empty"):
        import_checkpoint(source, tmp_path / "other")
    assert (tmp_path / "other" / "file").read_text() == "mine"
