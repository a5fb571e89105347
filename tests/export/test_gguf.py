"""A GGUF file holds the weights of the packed checkpoint exactly, read by the library of the format."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import give_input_order
from tiny_models import float_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from qllm_hf import QllmConfig
from qllm_hf.errors import CheckpointError, ModelError
from qllm_hf.export.gguf import export_gguf
from qllm_hf.nn import PackedLinear

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'qllm-hf[gguf]'")
# what GGUF cannot cut into its blocks stays in floating point here, and that is said
pytestmark = pytest.mark.filterwarnings("ignore:only .* of the linear weights")
KEEP = {"modules_to_not_convert": ["*.down_proj"]}  # 88 and 172 are no multiples of 32
SCHEMES = {
    "Q5_0": {"w": 4, "w_group_size": 32},
    "Q4_0": {"w": 4, "w_group_size": 64, "w_symmetric": True},
    "Q8_0": {"w": 8, "w_group_size": -1, "w_symmetric": True},
    "Q4_0 of 3 bits": {"w": 3, "w_group_size": 0},
}


@pytest.fixture(scope="module")
def floats(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "float"
    float_model("llama").half().save_pretrained(folder)
    return folder


def quantized(floats: Path, out: Path, **options: object) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(floats, quantization_config=QllmConfig(**{**KEEP, **options}))
    model.save_pretrained(out)
    return model


def paired(matrix: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter writes queries and keys."""
    return matrix.reshape(heads, 2, matrix.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(matrix.shape)


def test_weights_are_the_same(floats, tmp_path):
    for name, scheme in SCHEMES.items():
        model = quantized(floats, tmp_path / name, **scheme)
        done = export_gguf(str(tmp_path / name), tmp_path / f"{name}.gguf")
        assert done.blocks[name.split()[0]] == 12
        assert done.vocabulary == "none"
        read = {tensor.name: tensor for tensor in gguf.GGUFReader(done.file).tensors}
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        for module_name, module in model.named_modules():
            if not isinstance(module, PackedLinear):
                continue
            expected = module.packed("weight").decode(torch.float32).detach().numpy()
            heads = {"q_proj": 4, "k_proj": 2}.get(module_name.rpartition(".")[2])
            expected = paired(expected, heads) if heads else expected
            tensor = read.pop(names.get_name(f"{module_name}.weight", try_suffixes=(".weight",)))
            assert np.array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type), expected), module_name
        norm = read.pop("output_norm.weight")
        assert np.array_equal(norm.data, model.model.norm.weight.float().detach().numpy())
        assert len(read) == 2 + 2 + 2 * 2, "embedding and head, down projections, norms of the blocks"


def test_vocabulary_and_numbers(stories, tmp_path):
    options = QllmConfig(w=4, w_group_size=32, **KEEP)
    model = AutoModelForCausalLM.from_pretrained(stories, quantization_config=options, dtype=torch.float16)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_bytes((stories / "tokenizer.json").read_bytes())
    done = export_gguf(str(tmp_path / "model"), tmp_path / "model.gguf")
    assert done.vocabulary == "llama"
    fields = {name: field.contents() for name, field in gguf.GGUFReader(done.file).fields.items()}
    assert fields["llama.attention.head_count_kv"] == 4
    assert fields["llama.rope.dimension_count"] == 8
    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    assert tokens[:3] == ["<unk>", "<s>", "</s>"]
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.add_bos_token"]) == (1, True)
    from transformers import AutoTokenizer

    text = "Once upon a time there was a dog."
    expected = AutoTokenizer.from_pretrained(stories)(text, add_special_tokens=False).input_ids
    assert joined_by_score(" " + text, tokens, scores) == expected


def joined_by_score(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """As llama.cpp cuts text: of all neighbours that make a piece, the ones with the highest score are joined first."""
    number = {token: place for place, token in enumerate(tokens)}
    pieces = list(text.replace(" ", "▁"))
    while True:
        pairs = [a + b for a, b in itertools.pairwise(pieces)]
        found = [(-scores[number[pair]], place) for place, pair in enumerate(pairs) if pair in number]
        if not found:
            return [number[piece] for piece in pieces]
        _, place = min(found)
        pieces[place : place + 2] = [pairs[place]]


def test_what_gguf_cannot_hold(floats, tmp_path):
    cases = [
        ({"w": 4, "w_group_size": 32, "modules_to_not_convert": None}, "rows of 88 in groups of 32"),
        ({"w": 4, "w_group_size": 16}, "in groups of 16"),
        ({"w": 8, "w_group_size": 32}, "--w-symmetric"),
    ]
    for number, (scheme, message) in enumerate(cases):
        quantized(floats, tmp_path / str(number), **scheme)
        with pytest.raises(ModelError, match=message):
            export_gguf(str(tmp_path / str(number)), tmp_path / "out" / "model.gguf")
    model = quantized(floats, tmp_path / "unordered", w=4, w_group_size=32)
    give_input_order(model, "model.layers.0.self_attn.q_proj")
    model.save_pretrained(tmp_path / "ordered")
    with pytest.raises(ModelError, match="an order of inputs"):
        export_gguf(str(tmp_path / "ordered"), tmp_path / "out" / "model.gguf")
    assert not list((tmp_path / "out").glob("*")), "something was left behind"


def test_scales_beyond_float16(tmp_path):
    float_model("llama").save_pretrained(tmp_path / "float32")
    quantized(tmp_path / "float32", tmp_path / "packed", w=4, w_group_size=32)
    with pytest.raises(ModelError, match=r"float32 and lie beyond what float16.*--dtype float16"):
        export_gguf(str(tmp_path / "packed"), tmp_path / "out" / "model.gguf")
    assert not list((tmp_path / "out").glob("*"))


def test_places_and_families(floats, tmp_path):
    quantized(floats, tmp_path / "model", w=4, w_group_size=32)
    with pytest.raises(CheckpointError, match=r"ends in \.gguf"):
        export_gguf(str(tmp_path / "model"), tmp_path / "model")
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(CheckpointError, match="exists"):
        export_gguf(str(tmp_path / "model"), tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_text() == "mine"
    assert export_gguf(str(tmp_path / "model"), tmp_path / "model.gguf", overwrite=True).bytes > 1000
    float_model("gpt2").half().save_pretrained(tmp_path / "gpt2")
    quantized(tmp_path / "gpt2", tmp_path / "packed gpt2", w=4, w_group_size=32, modules_to_not_convert=None)
    with pytest.raises(ModelError, match="'gpt2' is not exported to GGUF: known are llama, mistral"):
        export_gguf(str(tmp_path / "packed gpt2"), tmp_path / "gpt2.gguf")
