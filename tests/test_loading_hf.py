"""from_pretrained and save_pretrained: options, devices, dtypes, patterns, and what is refused."""

import json
import shutil

import pytest
import torch
from checkpoints import W4KV8, float_checkpoints, load, logits, packed_checkpoints
from safetensors import safe_open
from safetensors.torch import load_file
from simulated_models import round_weights_, rounded_kv
from tiny_models import float_model, on_one_thread, prompt
from transformers import LlamaConfig, LlamaForCausalLM

from qllm_hf import CheckpointError, ConfigError, QllmConfig, Scheme, quantize_
from qllm_hf.ops import prefer
from qllm_hf.quantizer import QllmHfQuantizer
from qllm_hf.scheme import Spec

pytestmark = pytest.mark.oldest
_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)

floats = pytest.fixture(scope="module")(float_checkpoints)
packed = pytest.fixture(scope="module")(packed_checkpoints)


# --- configs


@pytest.mark.parametrize("kv", [2, 4, 16])
def test_kv_bits_can_change_while_loading(packed, floats, kv):
    got = load(packed / "llama", QllmConfig(kv=kv))
    expected = load(floats / "llama", QllmConfig(**{**W4KV8, "kv": kv}))
    assert torch.equal(logits(got), logits(expected))
    assert got.config.quantization_config.kv == kv
    assert got.config.quantization_config.w == 4


def test_loading_without_a_config_keeps_the_checkpoints(packed, floats):
    assert torch.equal(logits(load(packed / "llama")), logits(load(floats / "llama", QllmConfig(**W4KV8))))


def test_changed_bits_are_saved(packed, tmp_path):
    model = load(packed / "llama", QllmConfig(kv=3))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["kv"] == 3


@pytest.mark.parametrize("options", [{"w": 8}, {"w": 4, "w_group_size": 64}, {"w": 4, "w_symmetric": True}], ids=str)
def test_other_weights_cannot_be_asked_for(packed, options):
    with pytest.raises(ConfigError, match="packed weights"):
        load(packed / "llama", QllmConfig(**options))


def test_plain_dictionaries(packed, floats):
    """As a YAML file or a command line gives them; for a packed checkpoint, transformers wants the class."""
    expected = load(floats / "llama", QllmConfig(**W4KV8))
    assert torch.equal(logits(load(floats / "llama", {"quant_method": "qllm", **W4KV8})), logits(expected))
    with pytest.raises(ConfigError, match="'kv'"):
        load(floats / "llama", {"quant_method": "qllm", "kv_bits": 4})
    with pytest.raises(ValueError, match="quantized with QllmConfig but you are passing a dict"):
        load(packed / "llama", {"quant_method": "qllm", "kv": 4})


def test_one_config_serves_several_models(floats):
    config = QllmConfig(**W4KV8)
    first, second = load(floats / "llama", config), load(floats / "gpt2", config)
    assert torch.equal(logits(load(floats / "llama", config)), logits(first))
    assert first.config.quantization_config.to_dict() == second.config.quantization_config.to_dict()


def test_newer_format_is_refused(packed, tmp_path):
    shutil.copytree(packed / "llama", tmp_path / "new")
    path = tmp_path / "new" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["format"] = 2
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="format 2"):
        load(tmp_path / "new")


# --- files


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_files_hold_what_they_should(packed, floats, name):
    """Several shards, plain tensors, the format in each header, and no float copy of a packed weight."""
    files = sorted((packed / name).glob("*.safetensors"))
    assert len(files) > 1
    tensors = {}
    for file in files:
        tensors |= load_file(file)
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["qllm_format"] == "1"
    plan = load(floats / name, QllmConfig(**W4KV8)).hf_quantizer.plan
    # mixtral's files call `mlp` by another name
    tensors = {key.replace(".block_sparse_moe.", ".mlp."): tensor for key, tensor in tensors.items()}
    for entry in plan.quantized():
        assert tensors[entry.name + "_packed"].dtype == torch.int16
    left = [n for n in tensors if n in {entry.name for entry in plan.quantized()}]
    assert [tuple(tensors[n].shape) for n in left] == [(1,)], "the guard, and nothing else, has a float weight's name"


def test_saving_again_gives_the_same_files(packed, tmp_path):
    load(packed / "mixtral").save_pretrained(tmp_path, max_shard_size="60KB")
    for file in sorted(tmp_path.glob("*.safetensors")):
        ours, before = load_file(file), load_file(packed / "mixtral" / file.name)
        assert ours.keys() == before.keys()
        assert all(torch.equal(ours[key], before[key]) for key in ours)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (3, 128), (2, 64), (8, -1)])
def test_bits_per_weight_on_disk(bits, group_size, tmp_path):
    """A model of width 256 in bfloat16: packed tensors exactly as the formula says, the whole folder within 1 %."""
    shape = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 32,
        "tie_word_embeddings": True,
    }
    model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
    floats = sum(p.numel() for name, p in model.named_parameters() if "embed" in name or "norm" in name)
    weights = [p.shape for name, p in model.named_parameters() if name.endswith("proj.weight")]
    quantize_(model, QllmConfig(w=bits, w_group_size=group_size)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    ours = sum(t.numel() * t.element_size() for name, t in tensors.items() if "proj.weight_" in name)
    spec = Spec(bits, group_size)
    theory = sum(rows * columns * spec.bits_per_element(columns) / 8 for rows, columns in weights)
    assert ours == theory
    if group_size > 0:
        elements = sum(rows * columns for rows, columns in weights)
        assert theory * 8 / elements == bits + 24 / group_size
    assert abs((tmp_path / "model.safetensors").stat().st_size - theory - 2 * floats) < 0.01 * theory


@pytest.mark.parametrize("options", [{}, {"modules_to_not_convert": ["self_attn"]}], ids=["all", "experts only"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "jamba", "gpt_oss", "deepseek_v3", "phi3"])
@pytest.mark.filterwarnings("ignore:only .* of the linear weights:qllm_hf.errors.QllmWarning")
def test_what_was_quantized_in_memory_is_saved_alike(name, options, tmp_path):
    """transformers remembers how a file's experts were merged only for models that it loaded itself."""
    options = {} if name == "phi3" else options
    config = QllmConfig(**W4KV8, **options)
    in_memory = quantize_(float_model(name), config)
    in_memory.save_pretrained(tmp_path / "memory")
    float_model(name).save_pretrained(tmp_path / "float")
    load(tmp_path / "float", config).save_pretrained(tmp_path / "loaded")
    ours, theirs = (load_file(tmp_path / folder / "model.safetensors") for folder in ("memory", "loaded"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(logits(load(tmp_path / "memory"), name), logits(in_memory, name))


# --- devices and dtypes


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize("source", ["float", "packed"])
def test_device_maps(floats, packed, name, source, tmp_path):
    """On one device; and with a layer on disk, whose packed weights are read back for each forward."""
    path, config = (floats / name, QllmConfig(**W4KV8)) if source == "float" else (packed / name, None)
    expected = logits(load(path, config), name)
    assert torch.equal(logits(load(path, config, device_map={"": "cpu"}), name), expected)
    base = float_model(name).base_model_prefix
    layers = "h" if name == "gpt2" else "layers"
    names = {n.rsplit(".", 1)[0] for n, _ in float_model(name).named_parameters()}
    device_map = {n: "cpu" for n in sorted(names) if f".{layers}." not in n}
    device_map |= {f"{base}.{layers}.0": "disk", f"{base}.{layers}.1": "cpu", "lm_head": "cpu"}
    if name != "gpt2":
        device_map[f"{base}.rotary_emb"] = "cpu"
    offloaded = load(path, config, device_map=device_map, offload_folder=tmp_path / "offload")
    parameters = dict(offloaded.named_parameters())
    assert any(p.is_meta for p in parameters.values()), "nothing was put on disk"
    assert torch.equal(logits(offloaded, name), expected)
    assert torch.equal(logits(offloaded, name), expected), "the second forward differs from the first"


def sizes(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.nbytes for name, tensor in tensors.items()}


@pytest.mark.parametrize("source", ["float", "packed"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"w": 4, "kv": 8, "w_group_size": 32}),
        ("gemma2", {"w": 4, "w_group_size": 32, "quantize_head": True}),  # packed beside the embedding
        ("gpt_oss", {"w": 3, "w_group_size": -1}),  # experts with biases
        ("gpt2", {"w": 8, "w_group_size": 0, "w_symmetric": True}),
    ],
)
def test_what_a_device_map_counts_is_what_is_there(name, options, source, tmp_path, monkeypatch):
    """transformers asks for the size of each parameter before any is read; half of the model goes to disk."""
    float_model(name).save_pretrained(tmp_path / "float")
    whole = load(tmp_path / "float", QllmConfig(**options))
    whole.save_pretrained(tmp_path / "packed")
    counted, ask = {}, QllmHfQuantizer.param_element_size

    def count(self, model, parameter, tensor):
        size = ask(self, model, parameter, tensor)
        counted[parameter] = size * tensor.numel()
        return size

    monkeypatch.setattr(QllmHfQuantizer, "param_element_size", count)
    got = load(
        tmp_path / source,
        QllmConfig(**options) if source == "float" else None,
        device_map="auto",
        max_memory={"cpu": int(0.9 * sum(sizes(whole).values()))},  # a layer's room is kept free for those on disk
        offload_folder=tmp_path / "offload",
    )

    def owner(key):
        return next((module for module in got.hf_device_map if key.startswith(f"{module}.")), None)

    promised, found = (
        {
            device: sum(size for key, size in parts.items() if got.hf_device_map.get(owner(key)) == device)
            for device in ("cpu", "disk")
        }
        for parts in (counted, sizes(got))
    )
    assert promised == found
    assert min(found.values()) > 0
    assert sum(found.values()) == sum(sizes(whole).values())
    assert torch.equal(logits(got, name), logits(whole, name))


def test_saving_an_offloaded_model(packed, tmp_path):
    device_map = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    offloaded = load(packed / "llama", device_map=device_map, offload_folder=tmp_path / "offload")
    offloaded.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved")), logits(load(packed / "llama")))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in ("llama", "mixtral", "gpt2")
        for dtype in (torch.bfloat16, torch.float16, torch.float64)
        if (name, dtype) != ("mixtral", torch.float64)  # transformers has no such product for its experts
    ],
    ids=str,
)
def test_dtypes(floats, name, dtype, tmp_path):
    """Scales and K and V take the model's dtype; the reference is rounded in that dtype, too.

    Kernels do not round weights to that dtype, and add in another order.
    """
    scheme = Scheme(**W4KV8)
    model = load(floats / name, QllmConfig(**W4KV8), dtype=dtype)
    plain = round_weights_(load(floats / name, dtype=dtype), scheme)
    with rounded_kv(name, scheme), torch.no_grad():
        reference = plain(prompt(name), use_cache=True).logits
    got = logits(model, name)
    assert got.dtype == dtype
    other_order = 64 * torch.finfo(dtype).eps * float(reference.abs().max())  # a sum of 64 terms
    assert (got - reference).abs().max() <= other_order
    with prefer("dequantize"):
        assert (logits(model, name) - reference).abs().max() <= (0 if name == "llama" else other_order)
    assert {p.dtype for n, p in model.named_parameters() if n.endswith("_scale")} == {dtype}
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path, dtype="auto"), name), got)
