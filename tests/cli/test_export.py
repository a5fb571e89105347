"""qllm-hf export: what it writes, what it says, and how it refuses."""

import json

import pytest
from typer.testing import CliRunner

from qllm_hf.cli.main import app
from qllm_hf.export.readers import READERS, TABLE


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    words = ["quantize", "reference", "--scheme", "W4KV4", "-o", str(folder), "--quiet"]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder


def test_says_what_it_wrote_and_how_to_load_it(packed, tmp_path):
    out = tmp_path / "served"
    data = json.loads(run(packed, "-o", out, "--for", "vllm", "--max-shard-size", "1MB", "--json", "-q").stdout)
    assert data["bytes_after"] == sum(file.stat().st_size for file in out.glob("*.safetensors"))
    assert data["groups"] == {"4 bits asymmetric g128": 35}
    assert data["load"]["vllm"] == f"vllm serve {out} --kv-cache-dtype int4_per_token_head"
    assert "dequantize=True" in data["load"]["transformers-dequantize"]
    assert "transformers" not in data["load"]
    assert "KV4" in data["lost"][0]
    assert len(list(out.glob("*.safetensors"))) > 1
    text = run(packed, "-o", out, "--overwrite", "-q").stdout
    for words in ("35 matrices: 4 bits asymmetric g128", "Read by", f"vllm serve {out}", "Not in the files"):
        assert words in text


def test_writes_beside_the_model_by_default(packed):
    data = json.loads(run(packed, "--format", "float", "--json", "-q").stdout)
    assert data["output"] == str(packed.with_name("model-float"))
    assert (packed.with_name("model-float") / "tokenizer.json").is_file()
    assert "not empty" in run(packed, "--format", "float", "-q", code=1).stderr


def test_writes_a_file_for_llama_cpp(tmp_path):
    pytest.importorskip("gguf", reason="needs `pip install 'qllm-hf[gguf]'`")
    model, file = tmp_path / "model", tmp_path / "model.gguf"
    words = ["quantize", "reference", "--scheme", "W4g32", "--w-symmetric", "-o", str(model), "--quiet"]
    assert CliRunner().invoke(app, words).exit_code == 0
    data = json.loads(run(model, "--format", "gguf", "--json").stdout)
    assert (data["output"], data["bytes_after"]) == (str(file), file.stat().st_size)
    assert "Q4_0" in data["blocks"]
    assert f"gguf in {file}" in run(model, "--format", "gguf", "--overwrite").stdout
    assert "exists. Give another file" in run(model, "--format", "gguf", code=1).stderr
    assert "--for chooses among readers" in run(model, "--format", "gguf", "--for", "vllm", code=2).stderr


def test_prints_the_table_of_readers():
    text = run("--readers").stdout
    assert all(words in text for words in (*READERS, *TABLE))
    data = json.loads(run("--readers", "--json").stdout)
    assert data["table"].keys() == TABLE.keys()
    assert data["table"]["W4 asymmetric"]["transformers"]["known"] == "ran"


def test_refuses_with_one_sentence(packed, tmp_path):
    assert "say which model" in run(code=2).stderr
    assert "Did you mean 'float'" in run(packed, "--format", "floats", "-o", tmp_path / "x", code=1).stderr
    assert "nothing to export. Quantize it first" in run("reference", "-o", tmp_path / "x", code=1).stderr
    assert not (tmp_path / "x").exists()
