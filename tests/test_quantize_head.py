"""quantize_head: the output head is packed too, a tied one beside the embedding, and is never tied again."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from family_checks import generate
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, float_model, on_one_thread, prompt, tiny_config
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from qllm_hf import CheckpointError, ConfigError, ModelError, QllmConfig, quantize_
from qllm_hf.checkpoint import read_checkpoint
from qllm_hf.loading import check_stored, load_model, model_on_meta, save_model
from qllm_hf.methods import sensitivity
from qllm_hf.methods.calibration import Calibration
from qllm_hf.nn import PackedLinear
from qllm_hf.packed import PackedTensor
from qllm_hf.plan import make_plan, shared_weights
from qllm_hf.quantizer import QllmHfQuantizer
from qllm_hf.scheme import Spec
from qllm_hf.streamed import quantize_streamed
from qllm_hf.surgery import _ties_without
from qllm_hf.uniform import fake_quantize

pytestmark = [
    pytest.mark.oldest,
    pytest.mark.filterwarnings("ignore:only .* of the linear weights:qllm_hf.errors.QllmWarning"),
]
_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)

W4 = {"w": 4, "w_group_size": 32}
HEAD = {**W4, "quantize_head": True}
SHARD = "60KB"
tied_or_not = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


def made(name: str, tied: bool) -> PreTrainedModel:
    """The family's float model with a head that is the embedding, or one of its own."""
    config = tiny_config(name)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **MODELS[name].load).eval()
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    return model


def load(path: Path, name: str = "llama", **options) -> PreTrainedModel:
    """A model whose loading report has nothing to complain about."""
    model, complaints = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, **MODELS[name].load, **options
    )
    assert not any(complaints.values()), complaints
    return model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel, name: str = "llama") -> Tensor:
    return model(prompt(name), use_cache=False).logits


def head_of(model: PreTrainedModel) -> PackedLinear:
    head = model.get_output_embeddings()
    assert isinstance(head, PackedLinear)
    return head


def calibration(name: str = "llama") -> Calibration:
    return Calibration(prompt(name, batch=8), "made up")


@pytest.fixture(scope="module")
def floats(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("floats")
    for tied in (False, True):
        made("llama", tied).save_pretrained(folder / str(tied), max_shard_size=SHARD)
    return folder


# --- what every family does


@tied_or_not
@pytest.mark.parametrize("name", MODELS)
def test_families(name, tied, tmp_path):
    """Loading, quantizing in memory, saving, reading again and dequantizing agree with a head rounded from outside."""
    model = made(name, tied)
    embedding, weight = (
        m.weight.detach().clone() for m in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    model.save_pretrained(tmp_path / "float", max_shard_size=SHARD)
    packed = load(tmp_path / "float", name, quantization_config=QllmConfig(**HEAD))
    reference = quantize_(copy.deepcopy(model), QllmConfig(**W4)).dequantize()
    unrounded = logits(reference, name)
    rounded = fake_quantize(weight, Spec(4, 32))
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=model.get_output_embeddings().bias is not None)
    head.weight.data = rounded
    if head.bias is not None:
        head.bias.data = model.get_output_embeddings().bias.data
    reference.set_output_embeddings(head)

    result = logits(packed, name)
    tolerance = 64 * torch.finfo(torch.float32).eps * float(result.abs().max())
    assert (result - logits(reference, name)).abs().max() <= tolerance
    assert (result - unrounded).abs().max() > 100 * tolerance, "rounding the head must make a difference"
    (entry,) = [entry for entry in packed.hf_quantizer.plan.quantized() if entry.is_head]
    assert entry.tied == tied
    assert torch.equal(packed.get_input_embeddings().weight, embedding), "the embedding stays as it was"
    assert torch.equal(head_of(packed).weight, rounded)

    in_memory = quantize_(model, QllmConfig(**HEAD))
    assert torch.equal(logits(in_memory, name), result)
    in_memory.save_pretrained(tmp_path / "memory", max_shard_size=SHARD)
    packed.save_pretrained(tmp_path / "packed", max_shard_size=SHARD)
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) > 1
    again = load(tmp_path / "packed", name)
    assert torch.equal(logits(again, name), result)
    assert torch.equal(logits(load(tmp_path / "memory", name), name), result)
    assert again.hf_quantizer.plan == packed.hf_quantizer.plan == in_memory.hf_quantizer.plan
    again.tie_weights()
    assert torch.equal(logits(again, name), result), "tied again"
    assert torch.equal(generate(again, name), generate(packed, name))

    plain = again.dequantize()
    assert (logits(plain, name) - result).abs().max() <= tolerance
    plain.save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(load(tmp_path / "plain", name), name), logits(plain, name))


# --- ties


def test_tables_of_ties_forget_the_head_and_no_other_model_does(floats):
    packed = load(floats / "True", quantization_config=QllmConfig(**HEAD))
    assert shared_weights(packed) == set()
    assert packed.get_expanded_tied_weights_keys(all_submodels=True) == {}
    assert packed.config.tie_word_embeddings, "what the float model is like"
    again = load(floats / "True")
    assert shared_weights(again) == {"lm_head.weight", "model.embed_tokens.weight"}
    assert shared_weights(load(floats / "True", quantization_config=QllmConfig(**W4))) == shared_weights(again)


def test_other_ties_stay():
    ties = {"head.weight": "in.weight", "out.weight": "in.weight"}
    assert _ties_without(ties, {"head.weight"}) == {"out.weight": "in.weight"}
    assert _ties_without(ties, {"other.weight"}) == ties
    assert _ties_without({"a": "head", "b": "head", "c": "x"}, {"head"}) == {"b": "a", "c": "x"}


def test_a_file_that_holds_the_tied_weight_as_the_head(floats, tmp_path):
    """Converters have dropped either name."""
    made("llama", True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    expected = load(floats / "True", quantization_config=QllmConfig(**HEAD))
    assert torch.equal(logits(load(tmp_path, quantization_config=QllmConfig(**HEAD))), logits(expected))


@pytest.mark.parametrize("options", [{}, {"method": "gptq"}], ids=["rtn", "gptq"])
def test_a_file_that_holds_two_weights_though_its_config_ties_them(options, tmp_path):
    model = made("llama", False)
    model.save_pretrained(tmp_path / "float")
    path = tmp_path / "float" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    given = {"calibration": calibration().ids} if options else {}
    packed = load(tmp_path / "float", quantization_config=QllmConfig(**HEAD, **options, **given))
    expected = fake_quantize(model.lm_head.weight.detach(), Spec(4, 32))
    assert torch.equal(head_of(packed).weight, expected)
    assert not any(entry.tied for entry in packed.hf_quantizer.plan.quantized())
    packed.save_pretrained(tmp_path / "packed")
    again = load(tmp_path / "packed")
    assert torch.equal(logits(again), logits(packed))
    assert again.hf_quantizer.plan == packed.hf_quantizer.plan


def test_a_float_model_that_was_saved_can_be_quantized_and_dequantized(tmp_path):
    """Saving leaves the name of the dtype in the config, and not the dtype."""
    model = made("llama", True)
    model.save_pretrained(tmp_path)
    assert quantize_(model, QllmConfig(**HEAD)).dequantize().lm_head.weight.dtype is torch.float32


# --- bits, patterns, methods


def test_an_override_gives_the_head_other_bits(floats):
    model = load(floats / "True", quantization_config=QllmConfig(**HEAD, overrides={"lm_head": "W8"}))
    bits = {entry.module: entry.weight.bits for entry in model.hf_quantizer.plan.quantized()}
    assert (bits.pop("lm_head"), set(bits.values())) == (8, {4})
    assert torch.equal(head_of(model).weight, fake_quantize(model.get_input_embeddings().weight, Spec(8, 32)))


def test_its_input_stays_in_floating_point(floats):
    model = load(floats / "False", quantization_config=QllmConfig(a=8, **HEAD, overrides={"lm_head": "W8A8"}))
    inputs = {entry.module: entry.activation for entry in model.hf_quantizer.plan.quantized()}
    assert inputs.pop("lm_head") is None
    assert {spec.bits for spec in inputs.values()} == {8}
    hidden = torch.randn(3, 64)
    assert torch.allclose(model.lm_head(hidden), F.linear(hidden, model.lm_head.weight), atol=1e-6)


@tied_or_not
def test_the_head_alone(floats, tied, tmp_path):
    config = QllmConfig(w_group_size=32, quantize_head=True, overrides={"lm_head": "W8"})
    model = load(floats / str(tied), quantization_config=config)
    assert [entry.module for entry in model.hf_quantizer.plan.quantized()] == ["lm_head"]
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


@tied_or_not
@pytest.mark.parametrize("method", ["awq", "smoothquant", "gptq", "awq+gptq"])
def test_methods_round_the_head_to_nearest(method, tied, tmp_path):
    model = made("llama", tied)
    expected = PackedTensor.encode_weight(model.lm_head.weight.detach().clone(), Spec(4, 32))
    model.save_pretrained(tmp_path / "float")
    options = {**HEAD, "method": method, "calibration": calibration().ids}
    loaded = load(tmp_path / "float", quantization_config=QllmConfig(**options))
    assert torch.equal(head_of(loaded).weight_packed, expected.words)
    assert torch.equal(logits(quantize_(model, QllmConfig(**options))), logits(loaded))
    loaded.save_pretrained(tmp_path / "packed")
    assert torch.equal(logits(load(tmp_path / "packed")), logits(loaded))


@tied_or_not
def test_streamed(floats, tied, tmp_path):
    config = QllmConfig(**HEAD, method="gptq")
    streamed, work = quantize_streamed(str(floats / str(tied)), config, calibration(), tmp_path / "work")
    in_memory = load(
        floats / str(tied), quantization_config=QllmConfig(**HEAD, method="gptq", calibration=calibration().ids)
    )
    assert torch.equal(logits(streamed), logits(in_memory))
    work.remove()
    saved = save_model(streamed, None, tmp_path / "packed")
    assert torch.equal(logits(load(saved)), logits(streamed))


def test_a_budget_leaves_the_head_out(floats):
    options = {"bits_per_weight": 4.5, "w_group_size": 32, "calibration": calibration().ids, "quantize_head": True}
    model = quantize_(made("llama", True), QllmConfig(**options, overrides={"lm_head": "W6"}))
    assert {entry.weight.bits for entry in model.hf_quantizer.plan.quantized() if entry.is_head} == {6}
    config = QllmConfig(w_group_size=32, calibration=calibration().ids, quantize_head=True, w=4)
    table = sensitivity.measure_sensitivity(made("llama", True), config, bits=(4, 8)).to_dict()
    assert len(table["layers"]) == 14
    assert "lm_head" not in table["layers"]
    chosen = QllmConfig.from_budget(5.5, table, w_group_size=32, quantize_head=True)
    assert head_of(quantize_(made("llama", True), chosen)).weight_specs["weight"][0].bits == chosen.w


# --- devices


@tied_or_not
def test_device_maps(floats, tied, tmp_path):
    path, config = floats / str(tied), QllmConfig(**HEAD)
    expected = logits(load(path, quantization_config=config))
    assert torch.equal(logits(load(path, quantization_config=config, device_map={"": "cpu"})), expected)
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"}
    device_map |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    offloaded = load(path, quantization_config=config, device_map=device_map, offload_folder=tmp_path / "offload")
    assert any(parameter.is_meta for parameter in offloaded.parameters()), "nothing was put on disk"
    assert hasattr(offloaded.lm_head, "_hf_hook"), "the packed head has to move its input as the float one does"
    assert torch.equal(logits(offloaded), expected)
    offloaded.save_pretrained(tmp_path / "packed")
    assert torch.equal(logits(load(tmp_path / "packed")), expected)
    again = load(tmp_path / "packed", device_map={**device_map, "lm_head": "disk"}, offload_folder=tmp_path / "again")
    assert torch.equal(logits(again), expected)


def test_a_tied_weight_on_disk_cannot_be_packed(floats, tmp_path):
    device_map = {"model.embed_tokens": "disk", "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    device_map["lm_head"] = "disk"
    with pytest.raises(ModelError, match="tied to the embedding, which is on disk"):
        load(floats / "True", quantization_config=QllmConfig(**HEAD), device_map=device_map, offload_folder=tmp_path)


def test_a_device_map_makes_room_for_the_head_beside_the_embedding(floats):
    shapes = model_on_meta(str(floats / "True"))
    sizes = {}
    for head in (True, False):
        quantizer = QllmHfQuantizer(QllmConfig(**{**HEAD, "quantize_head": head}), pre_quantized=False)
        quantizer.plan = make_plan(shapes, quantizer.quantization_config)
        weight = shapes.get_input_embeddings().weight
        sizes[head] = quantizer.param_element_size(shapes, "model.embed_tokens.weight", weight)
    assert sizes[False] == 4
    assert sizes[True] == 4 + (4 + (32 + 8) / 32) / 8


# --- files


@tied_or_not
def test_files_are_checked_as_others_are(floats, tied, tmp_path):
    model = load_model(str(floats / str(tied)), QllmConfig(**HEAD))
    saved = save_model(model, None, tmp_path / "saved")
    tensors = read_checkpoint(saved).tensors
    assert {"lm_head.weight_packed", "lm_head.weight_scale", "model.embed_tokens.weight"} <= tensors.keys()
    assert "lm_head.weight" not in tensors
    assert read_checkpoint(saved).config["quantization_config"]["format"] == 1
    config = QllmConfig.from_dict(read_checkpoint(saved).config["quantization_config"])
    check_stored(model_on_meta(str(saved)), config, read_checkpoint(saved))
    with pytest.raises(CheckpointError, match=r"files hold 0 of 0 bytes"):
        check_stored(model_on_meta(str(saved)), config, read_checkpoint(floats / str(tied)))


def test_checkpoints_that_do_not_know_of_it_are_read(floats, tmp_path):
    model = load(floats / "True", quantization_config=QllmConfig(**W4))
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert "quantize_head" not in stored
    again = load(tmp_path)
    assert again.hf_quantizer.quantization_config.quantize_head is False
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(ConfigError, match="asked for quantize_head=True, but this checkpoint holds"):
        load(tmp_path, quantization_config=QllmConfig(quantize_head=True))


def test_other_kv_bits_may_be_asked_for(floats, tmp_path):
    load(floats / "True", quantization_config=QllmConfig(**HEAD)).save_pretrained(tmp_path)
    changed = load(tmp_path, quantization_config=QllmConfig(kv=8))
    assert changed.config.quantization_config.quantize_head is True
    assert isinstance(changed.lm_head, PackedLinear)


# --- what is refused


@tied_or_not
def test_resizing_is_refused_before_anything_changes(tied, floats, tmp_path):
    model = load(floats / str(tied), quantization_config=QllmConfig(**HEAD))
    before = logits(model)
    for each in (model, copy.deepcopy(model)):
        for given in ({"new_num_tokens": 300}, {"new_num_tokens": 250}, {"pad_to_multiple_of": 100}):
            with pytest.raises(ModelError, match=r"packed for 256 tokens and cannot be resized to (300|250)"):
                each.resize_token_embeddings(**given)
        assert each.get_input_embeddings().weight.shape[0] == each.config.vocab_size == 256
        assert each.resize_token_embeddings() is each.get_input_embeddings()
        assert each.resize_token_embeddings(256) is each.get_input_embeddings()
        assert torch.equal(logits(each), before)
    plain = model.dequantize()
    plain.resize_token_embeddings(300)
    assert logits(plain).shape[-1] == 300
    float_head = load(floats / str(tied), quantization_config=QllmConfig(**W4))
    float_head.resize_token_embeddings(300)
    assert logits(float_head).shape[-1] == 300


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kv": 8, "quantize_head": True}, "lm_head: the scheme leaves weights at 16 bits"),
        ({**HEAD, "modules_to_not_convert": ["lm_head"]}, "lm_head: kept by modules_to_not_convert"),
        ({**HEAD, "overrides": {"lm_head": "FP16"}}, "lm_head: kept by an override"),
        ({**W4, "overrides": {"lm_head": "W8"}}, "give quantize_head=True as well"),
    ],
    ids=["kv only", "kept", "override", "override alone"],
)
def test_a_head_that_is_asked_for_and_cannot_be(floats, options, reason):
    with pytest.raises(ModelError, match=reason):
        load(floats / "False", quantization_config=QllmConfig(**options))


@pytest.mark.parametrize("overrides", [{"lm_head": "FP16"}, {"*": "W8"}, {"*_head": "FP16", "*.down_proj": "W8"}])
def test_overrides_that_ask_nothing_of_a_float_head(floats, overrides):
    model = load(floats / "False", quantization_config=QllmConfig(**W4, overrides=overrides))
    assert type(model.lm_head) is torch.nn.Linear


def test_models_without_such_a_head():
    config = float_model("llama").config
    with torch.device("meta"):
        for model in (AutoModel.from_config(config), AutoModelForSequenceClassification.from_config(config)):
            with pytest.raises(ModelError, match=r"quantize_head=True, but Llama.* output head cannot be"):
                make_plan(model, QllmConfig(**HEAD))


def test_a_head_with_a_forward_of_its_own():
    class OddHead(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    model = float_model("llama")
    model.lm_head = OddHead(64, 256, bias=False)
    with pytest.raises(ModelError, match="lm_head: a Linear subclass with a forward of its own"):
        quantize_(model, QllmConfig(**HEAD))


def test_coverage_says_nothing_of_the_head(floats):
    without, with_head = (
        make_plan(model_on_meta(str(floats / "False")), QllmConfig(**{**W4, "quantize_head": head}))
        for head in (False, True)
    )
    assert without.coverage() == with_head.coverage() == 1
    assert len(with_head.quantized()) == len(without.quantized()) + 1
