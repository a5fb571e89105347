"""A packed model, exported, loaded by transformers from disk, says the same; or nothing is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import give_input_order, load, read_bits
from packaging.version import Version
from safetensors import safe_open
from tiny_models import LLAMA, float_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

from qllm_hf import QllmConfig, reference_model
from qllm_hf.errors import CheckpointError, ConfigError, ModelError
from qllm_hf.export.readers import DEQUANTIZE, TRANSFORMERS, VLLM, VLLM_CPU
from qllm_hf.export.run import export_checkpoint
from qllm_hf.loading import load_tokenizer, save_model

pytest.importorskip("compressed_tensors")

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed `quantization_config`"),  # it is meant
    pytest.mark.oldest,
]
TABLE_HOLDS = Version(transformers.__version__) >= Version("5.23")
"""The table of readers is of transformers 5.23; before, it unpacks everything when it loads (docs/exchange.md)."""
PROMPT = "Once upon a time there was a"
SYMMETRIC = {"w": 4, "w_symmetric": True, "w_group_size": 64}


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return AutoTokenizer.from_pretrained(reference_model())(PROMPT, return_tensors="pt").input_ids


@pytest.fixture
def packed(tmp_path):
    """Packs the reference model, or a model that is given, and returns its folder."""

    def pack(model=None, dtype=torch.float32, name="packed", shards=None, **options) -> Path:
        loaded = load(model or reference_model(), QllmConfig(**options), dtype=dtype)
        tokenizer = load_tokenizer(reference_model()) if model is None else None
        return save_model(loaded, tokenizer, tmp_path / name, max_shard_size=shards)

    return pack


@torch.no_grad()
def said(model, tokens) -> tuple[torch.Tensor, list[int]]:
    """Logits of the prompt, and how generate goes on."""
    logits = model(tokens, use_cache=False).logits
    return logits, model.generate(tokens, max_new_tokens=8, do_sample=False)[0].tolist()


def as_float(folder: Path, dtype=None):
    """The packed model with ordinary weights, by its own dequantize."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto").eval().dequantize()


def reloaded(folder: Path, *, dequantize: bool):
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"]
    return model.eval()


def assert_same(found, wanted, tokens) -> None:
    (found_logits, found_text), (logits, text) = said(found, tokens), said(wanted, tokens)
    assert found_logits.equal(logits)
    assert found_text == text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_asymmetric_weights_in_a_model(packed, tmp_path, tokens, dtype):
    folder = packed(w=4, kv=8, dtype=dtype)
    done = export_checkpoint(str(folder), tmp_path / "out")
    assert_same(reloaded(tmp_path / "out", dequantize=True), as_float(folder), tokens)
    assert done.readings[DEQUANTIZE].outcome == "same"
    assert done.readings[TRANSFORMERS].outcome == "no"
    if TABLE_HOLDS:
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            reloaded(tmp_path / "out", dequantize=False)
    else:
        assert_same(reloaded(tmp_path / "out", dequantize=False), as_float(folder), tokens)
    assert done.kv_cache_dtype == "int8_per_token_head"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(PROMPT).input_ids == tokens[0].tolist()
    assert (tmp_path / "out" / "generation_config.json").is_file()
    assert not (tmp_path / "out" / "qllm_recipe.json").exists()


def test_symmetric_weights_of_several_schemes(packed, tmp_path, tokens):
    width = read_bits([3, 2])[0]
    folder = packed(
        shards="300KB", w=width, w_symmetric=True, overrides={"*.down_proj": "W8", "layers.0.self_attn": "FP16"}
    )
    assert len(list(folder.glob("*.safetensors"))) > 3, "parts of a weight may lie in several files"
    done = export_checkpoint(str(folder), tmp_path / "out")
    assert_same(reloaded(tmp_path / "out", dequantize=False), as_float(folder), tokens)
    assert sorted(done.groups.values()) == [5, 26]
    # transformers then takes one scheme for all layers, and gives other numbers: the table has to know
    assert done.readings[DEQUANTIZE].outcome == "no"
    logits, _ = said(reloaded(tmp_path / "out", dequantize=True), tokens)
    assert torch.allclose(logits, said(as_float(folder), tokens)[0], atol=0.5) != TABLE_HOLDS


@pytest.mark.parametrize("symmetric", [False, True])
def test_inputs_are_quantized_too(packed, tmp_path, tokens, symmetric):
    folder = packed(w=8, a=8, w_symmetric=True, w_group_size=-1, a_symmetric=symmetric)
    done = export_checkpoint(str(folder), tmp_path / "out")
    assert done.readings[VLLM].outcome == done.readings[VLLM_CPU].outcome == "same"
    ours, _ = said(AutoModelForCausalLM.from_pretrained(folder), tokens)
    theirs, _ = said(reloaded(tmp_path / "out", dequantize=False), tokens)
    weights_only, _ = said(as_float(folder), tokens)
    apart, effect = (theirs - ours).abs().mean(), (weights_only - ours).abs().mean()
    # an asymmetric grid is the same but for ties; a symmetric range is divided by 127.5 there, and by 127 here
    assert apart < 0.3 * effect if not symmetric else 0.5 * effect < apart < 3 * effect
    dequantized = reloaded(tmp_path / "out", dequantize=True)
    if TABLE_HOLDS:
        assert_same(dequantized, as_float(folder), tokens)
    else:
        assert said(dequantized, tokens)[0].equal(theirs), "it makes no difference"


@pytest.mark.parametrize("head", ["W4g64", "W8"])
def test_a_packed_head_is_untied(packed, tmp_path, tokens, head):
    folder = packed(**SYMMETRIC, quantize_head=True, overrides={"lm_head": head})
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    export_checkpoint(str(folder), tmp_path / "out")
    model = reloaded(tmp_path / "out", dequantize=False)
    assert_same(model, as_float(folder), tokens)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert ["lm_head" in group["targets"] for group in groups.values()].count(True) == 1  # by name: vLLM needs it


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_stored_one_by_one(packed, tmp_path, family):
    base = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[family](
            **{
                **LLAMA,
                "intermediate_size": 128,
                "moe_intermediate_size": 64,
                "num_experts": 4,
                "num_local_experts": 4,
            },
            num_experts_per_tok=2,
            head_dim=16,
        )
    )
    base.save_pretrained(tmp_path / "float")
    folder = packed(tmp_path / "float", w=4, w_symmetric=True, w_group_size=32)
    tokens = torch.arange(3, 23).view(1, -1)
    for name, options in (("ct", {}), ("plain", {"format": "float"})):
        export_checkpoint(str(folder), tmp_path / name, shard_bytes=100_000, **options)
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
        assert_same(reloaded(tmp_path / name, dequantize=name == "ct"), as_float(folder), tokens)
    with safe_open(next((tmp_path / "plain").glob("*.safetensors")), "pt") as plain:
        assert not [name for name in plain.keys() if name.endswith("gate_up_proj")]  # noqa: SIM118
    ignored = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]["ignore"]
    assert any(name.endswith(".gate") for name in ignored), "routers, which transformers keeps in no linear layer"
    experts = packed(tmp_path / "float", name="zeros", w=4, w_group_size=32)
    with pytest.raises(ModelError, match=r"transformers does not read this checkpoint .*knows no zero points"):
        export_checkpoint(str(experts), tmp_path / "none", reader="transformers")


def test_layers_that_transformers_calls_otherwise(packed, tmp_path):
    """GPT-NeoX's files say embed_out, its module is lm_head: both are named, so that neither reader packs it."""
    float_model("gpt_neox").save_pretrained(tmp_path / "float")
    folder = packed(tmp_path / "float", w=4, w_symmetric=True, w_group_size=4)
    export_checkpoint(str(folder), tmp_path / "out")
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert set(ignored) == {"embed_out", "lm_head"}
    assert_same(reloaded(tmp_path / "out", dequantize=False), as_float(folder), torch.arange(3, 23).view(1, -1))


def test_models_that_read_their_weights_themselves(packed, tmp_path):
    float_model("mamba").save_pretrained(tmp_path / "float")
    folder = packed(tmp_path / "float", w=4, w_symmetric=True, w_group_size=4)
    done = export_checkpoint(str(folder), tmp_path / "out", reader="transformers")
    assert (done.readings[TRANSFORMERS].outcome, done.readings[DEQUANTIZE].outcome) == ("no", "same")
    tokens = torch.arange(3, 23).view(1, -1)
    with pytest.raises(AttributeError, match="weight"):
        reloaded(tmp_path / "out", dequantize=False)(tokens)
    if TABLE_HOLDS:
        assert_same(reloaded(tmp_path / "out", dequantize=True), as_float(folder), tokens)
    else:
        with pytest.raises(AttributeError, match="weight"):
            reloaded(tmp_path / "out", dequantize=True)(tokens)


def test_float_weights_of_every_shape(packed, tmp_path):
    for family in ("gpt2", "gpt_oss", "llama"):
        float_model(family).save_pretrained(tmp_path / family)
        folder = packed(tmp_path / family, name=f"packed-{family}", w=4, w_group_size=32)
        export_checkpoint(str(folder), tmp_path / f"out-{family}", format="float")
        model, wanted = load(tmp_path / f"out-{family}"), as_float(folder).state_dict()
        assert not hasattr(model.config, "quantization_config")
        assert all(tensor.equal(wanted[name]) for name, tensor in model.state_dict().items())


def test_layers_that_scale_their_input(packed, tmp_path, tokens):
    folder = packed(w=4, w_symmetric=True)
    _give_input_scale(folder, "model.layers.1.mlp.down_proj")
    with pytest.raises(ModelError, match=r"layers.1.mlp.down_proj multiplies its input by a stored vector"):
        export_checkpoint(str(folder), tmp_path / "out")
    export_checkpoint(str(folder), tmp_path / "plain", format="float")
    assert_same(reloaded(tmp_path / "plain", dequantize=False), as_float(folder), tokens)


def test_layers_that_reorder_their_input(packed, tmp_path, tokens):
    model = load(packed(w=4, w_symmetric=True, w_group_size=64), None)
    give_input_order(model, "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj")
    folder = save_model(model, None, tmp_path / "ordered")
    with pytest.raises(ModelError, match=r"layers.0.self_attn.q_proj reads its input in a stored order"):
        export_checkpoint(str(folder), tmp_path / "out")
    export_checkpoint(str(folder), tmp_path / "plain", format="float")
    plain, wanted = reloaded(tmp_path / "plain", dequantize=False), as_float(folder)
    assert all(tensor.equal(wanted.state_dict()[name]) for name, tensor in plain.state_dict().items())
    assert_same(plain, wanted, tokens)
    assert (said(plain, tokens)[0] - said(model, tokens)[0]).abs().max() < 1e-3


def _give_input_scale(folder: Path, module: str) -> None:
    """Let one layer of a packed checkpoint have an input scale, as method awq writes it."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    columns = 512
    tensors[f"{module}.input_scale"] = torch.linspace(0.5, 2, columns)
    save_file(tensors, folder / "model.safetensors", {"qllm_format": "1", "format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["input_scales"] = [module]
    (folder / "config.json").write_text(json.dumps(config))


def test_groups_that_do_not_divide_a_row(packed, tmp_path):
    float_model("llama").save_pretrained(tmp_path / "float")
    folder = packed(tmp_path / "float", w=4, w_group_size=32)
    with pytest.raises(ModelError, match=r"groups of 32 do not divide its 88 inputs.*--w-group-size 22 or 44 or per"):
        export_checkpoint(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_whoever_has_to_read_it(packed, tmp_path):
    folder = packed(w=4, a=8, name="a8")
    with pytest.raises(ModelError, match=r"vllm does not read .*No compressed-tensors .*--a-symmetric"):
        export_checkpoint(str(folder), tmp_path / "out", reader="vllm")
    with pytest.raises(ConfigError, match="Did you mean 'vllm'"):
        export_checkpoint(str(folder), tmp_path / "out", reader="vlm")
    with pytest.raises(ConfigError, match="Formats are compressed-tensors, float, and gguf, which is one file"):
        export_checkpoint(str(folder), tmp_path / "out", format="gguf")
    done = export_checkpoint(str(folder), tmp_path / "out", reader="transformers")
    assert "no reader quantizes the inputs" in done.lost[-1]
    assert "--scheme W4g128A8 --a-symmetric" in done.lost[-1]


def test_nothing_is_taken_for_whole_or_written_over(packed, tmp_path):
    folder = packed(w=4, kv=4)
    with pytest.raises(CheckpointError, match=r"float model.*Quantize it first"):
        export_checkpoint("reference", tmp_path / "out")
    with pytest.raises(CheckpointError, match="Download it first: hf download owner/name"):
        export_checkpoint("owner/name", tmp_path / "out")
    with pytest.raises(ModelError, match="its own exported form"):
        export_checkpoint(str(folder), folder, overwrite=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        export_checkpoint(str(folder), tmp_path / "out")
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    with (half / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1000)
    with pytest.raises(CheckpointError, match="cut short"):
        export_checkpoint(str(half), tmp_path / "cut")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "out", "packed"]
    kv_only = packed(kv=4, name="kv")
    with pytest.raises(ModelError, match="no packed weights"):
        export_checkpoint(str(kv_only), tmp_path / "cut")
    export_checkpoint(str(kv_only), tmp_path / "plain", format="float")
    assert not (tmp_path / "cut").exists()


def test_a_stopped_export_leaves_what_was_there(packed, tmp_path, tokens):
    folder = packed(**SYMMETRIC)
    export_checkpoint(str(folder), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def stop(size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(str(folder), tmp_path / "out", overwrite=True, progress=stop)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "packed"]
    export_checkpoint(str(folder), tmp_path / "out", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before, "the same bytes each time"
