"""Act order with groups: columns sorted by group, the order beside them, and everything that is done with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import load, logits
from peer_checkpoints import CASES, act_order, integers, write_checkpoint
from safetensors.torch import load_file, save_file
from tiny_models import float_model, prompt
from torch import Tensor
from transformers import AutoConfig

import qllm_hf
from qllm_hf import QllmConfig
from qllm_hf.errors import CheckpointError, ModelError
from qllm_hf.export.run import export_checkpoint
from qllm_hf.importing.convert import import_checkpoint
from qllm_hf.loading import load_model
from qllm_hf.nn import PackedLinear
from qllm_hf.reporting.model import plan_report
from qllm_hf.scheme import PER_ROW, Spec
from qllm_hf.uniform import fake_quantize

NAME = "gptq in act order"
LAYER = "model.layers.1.mlp.up_proj"
ORDER = f"{LAYER}.input_order"
MODULES = ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", *(f"self_attn.{part}_proj" for part in "koqv"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """What the integers mean in floats, and the imported checkpoint."""
    root = tmp_path_factory.mktemp("act-order")
    write_checkpoint(CASES[NAME], root / "peer", root / "float")
    imported = import_checkpoint(root / "peer", root / "ours")
    assert imported.config.input_orders == [f"model.layers.*.{module}" for module in MODULES]
    assert any("14 layers are in act order" in note for note in imported.notes)
    return root / "float", root / "ours"


def packed_layers(model: torch.nn.Module) -> dict[str, PackedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def test_codes_zeros_and_scales_are_those_of_the_file(folders):
    model, tensors = load(folders[1]), float_model("llama").state_dict()
    found = packed_layers(model)
    assert len(found) == 14
    for name, layer in found.items():
        matrix = tensors[f"{name}.weight"].numpy().copy()
        matrix[::3] = abs(matrix[::3])  # as the case says
        order = act_order(f"{name}.weight", matrix.shape[1])
        theirs = integers(matrix, 4, 32, False, order)
        place = sorted(range(len(order)), key=lambda column, theirs=theirs: (theirs.group[column], column))
        packed = layer.packed("weight")
        assert layer.input_order.tolist() == place != list(range(len(order)))
        assert packed.codes().tolist() == theirs.codes[:, place].tolist()
        assert packed.zero_point.tolist() == theirs.zero.tolist()
        assert packed.scale.tolist() == theirs.scale.tolist()


def test_saved_and_loaded_again(folders, tmp_path):
    model = load(folders[1])
    model.save_pretrained(tmp_path / "again")
    before = {k: v for file in folders[1].glob("*.safetensors") for k, v in load_file(file).items()}
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(after[key].equal(before[key].to(after[key].dtype)) for key in before)
    assert after[ORDER].dtype == torch.int32
    config = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert len(config["input_orders"]) == 7 and config["format"] == 1
    assert logits(load(tmp_path / "again")).equal(logits(model))


def test_dequantized(folders):
    floats, ours = load(folders[0]), load(folders[1]).dequantize()
    assert not packed_layers(ours)
    assert all(tensor.equal(floats.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.oldest
def test_generates_the_same_tokens_also_from_disk(folders, tmp_path):
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = load(folders[0]).generate(prompt("llama"), **options)
    assert load(folders[1]).generate(prompt("llama"), **options).equal(expected)
    where = {"model.layers.1": "disk", "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.norm": "cpu",
             "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    spread = load(folders[1], device_map=where, offload_folder=tmp_path)
    assert spread.get_submodule(LAYER).input_order.is_meta
    assert spread.generate(prompt("llama"), **options).equal(expected)


def test_bits_of_inputs_and_cache(folders):
    """Numbers per token do not depend on the order of its inputs."""
    packed, twin = (load(folders[1], QllmConfig(w=4, a=8, kv=8, w_group_size=32)) for _ in range(2))
    for name, layer in packed_layers(twin).items():
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight.data = layer.float_matrix()
        plain.register_forward_pre_hook(lambda _, x: fake_quantize(x[0], Spec(8, PER_ROW)))
        twin.set_submodule(name, plain)
    assert (logits(packed) - logits(twin)).abs().max() < 1e-4
    assert (logits(packed) - logits(load(folders[0]))).abs().max() > 1e-3


def test_bytes_of_the_order_count(folders):
    model = load(folders[1], dtype=torch.float16)
    report = qllm_hf.report(model)
    stored = sum(p.nbytes for layer in packed_layers(model).values() for p in layer.parameters())
    assert sum(group.bytes_after for group in report.quantized) == stored
    assert report.bits_per_weight == pytest.approx(report.bits_per_weight_expected)
    assert sum(layer.input_order.nbytes for layer in packed_layers(model).values()) > 0.05 * stored
    assert "read in a stored order" in str(report)


def set_order(value: Callable[[Tensor], Tensor]) -> Callable[[dict, dict], None]:
    return lambda tensors, config: tensors.update({ORDER: value(tensors[ORDER])})


def first(value: int) -> Callable[[Tensor], Tensor]:
    return lambda order: torch.cat([torch.tensor([value], dtype=torch.int32), order[1:]])


SPOILED = {
    "out of range": (set_order(first(64)), f"{ORDER} is no order of a layer's inputs, each of 0 to 63 once"),
    "negative": (set_order(first(-1)), f"{ORDER} is no order"),
    "twice": (set_order(lambda order: order[[0, *range(63)]].contiguous()), f"{ORDER} is no order"),
    "int64": (set_order(lambda order: order.long()), f"{ORDER} is no order"),
    "gone": (lambda tensors, config: tensors.pop(ORDER), "names 14 layers .* hold 13"),
    "unknown": (lambda tensors, config: config["input_orders"].pop(2), "names 12 layers .* hold 14"),
    "none known": (lambda tensors, config: config.pop("input_orders"), "names 0 layers .* hold 14"),
}


@pytest.mark.parametrize("name", SPOILED)
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_what_is_no_order_is_never_used(folders, tmp_path, name, place):
    change, message = SPOILED[name]
    folder = tmp_path / "spoiled"
    shutil.copytree(folders[1], folder)
    (file,) = folder.glob("*.safetensors")
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(file)
    change(tensors, config["quantization_config"])
    save_file(tensors, file, {"qllm_format": "1"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load(folder, device_map={"": place.replace("memory", "cpu")}, offload_folder=tmp_path / "offload")
    with pytest.raises(CheckpointError, match="input_orders=None, .* and 11 more" if name == "none known" else message):
        load_model(str(folder))
    with pytest.raises(CheckpointError, match="input_orders=None, .* and 11 more" if name == "none known" else message):
        export_checkpoint(str(folder), tmp_path / "plain", format="float")


def test_state_dict_without_files(folders):
    model = load(folders[1])
    tensors, config = dict(model.state_dict()), AutoConfig.from_pretrained(folders[1])
    again = type(model).from_pretrained(None, config=config, state_dict=tensors)
    assert logits(again).equal(logits(model))
    tensors[ORDER] = tensors[ORDER].flip(0).clamp(max=62)
    with pytest.raises(CheckpointError, match=f"{ORDER} is no order"):
        type(model).from_pretrained(None, config=config, state_dict=tensors)


def test_a_float_model_has_no_order():
    for quantize in (
        lambda config: qllm_hf.quantize_(float_model("llama"), config),
        lambda config: plan_report(float_model("llama"), config),
    ):
        with pytest.raises(ModelError, match=r"input_orders=\['\*.up_proj'\] says how .* imported .* Leave it out"):
            quantize(QllmConfig(w=4, w_group_size=32, input_orders=["*.up_proj"]))
