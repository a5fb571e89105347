"""Tokens per second of `qllm-hf serve` for eight clients at a time, and how long each waits for its first token.

    python benchmarks/serving.py WORK [--models llama-135m-shaped,llama-1b1-shaped] [--rounds 3]

The models have the shapes of SmolLM-135M and TinyLlama-1.1B and random weights in bfloat16; they are made in WORK. For
every scheme there is one server that works on requests one after another, over a packed cache, and one that decodes
them together, over a paged cache in floating point. All servers of a model are up in one process and asked in turns, so
that they meet the same minutes; the clients are threads of another process, and stream. Before the clock starts, the
first answer of each server is compared with what `generate` writes in the same process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import write_results
from speed import SHAPES
from transformers import AutoModelForCausalLM, LlamaConfig

from qllm_hf import QllmConfig
from qllm_hf.loading import load_model, load_tokenizer
from qllm_hf.reporting.tensors import parameter_bytes
from qllm_hf.serving.running import hush, serving
from qllm_hf.serving.server import Engine, address_of, listen, make_server

CLIENTS = 8
TOKENS = 32
SCHEMES = ("FP16", "W8", "W4", "W4A8", "W4KV8", "W4KV4")
ENGINES = {"one after another": Engine(), "together": Engine(batched=True, cache_tokens=8192)}
PROMPTS = [
    f"{name} was at the {place} and saw a dog." for name in ("Mia", "Tom") for place in ("park", "lake", "shop", "sea")
]


class Answer(NamedTuple):
    """Seconds until the first token and until the last, and how many there were."""

    first: float
    last: float
    tokens: int
    text: str


def ask(address: str, prompt: str) -> Answer:
    """One streamed completion."""
    body = {"model": "model", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    began, first, text, tokens = time.perf_counter(), 0.0, "", 0
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            text += event["choices"][0].get("text") or ""
            first = first or time.perf_counter() - began
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return Answer(first, time.perf_counter() - began, tokens, text)


def ask_all(address: str) -> tuple[float, list[Answer]]:
    """Seconds until every client has its answer, and the answers."""
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda prompt: ask(address, prompt), PROMPTS))
    return time.perf_counter() - began, answers


def checkpoint(work: Path, name: str) -> Path:
    """The float model and a tokenizer that knows a word for each of its tokens."""
    folder = work / name
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(**SHAPES[name], max_position_embeddings=4096, eos_token_id=None)
        tokenizer = load_tokenizer("reference")
        tokenizer.add_tokens([f" w{number}" for number in range(config.vocab_size - len(tokenizer))])
        tokenizer.save_pretrained(folder)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def checked(server: str, address: str, model: Any, tokenizer: Any) -> None:
    """Raises AssertionError if a server does not begin as `generate` does; later, close calls may fall otherwise."""
    prompt = tokenizer(PROMPTS[0], return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    expected = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    found = ask(address, PROMPTS[0])
    assert found.tokens == TOKENS and found.text.startswith(expected), (server, expected, found)


def measured(work: Path, name: str, rounds: int, clients: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    """One row for each scheme and engine."""
    folder = checkpoint(work, name)
    tokenizer = load_tokenizer(str(folder))
    servers: dict[tuple[str, str], str] = {}
    weights: dict[str, int] = {}
    with ExitStack() as running:
        for scheme in SCHEMES:
            config = None if scheme == "FP16" else QllmConfig.from_scheme(scheme)
            model = load_model(str(folder), config).eval()
            weights[scheme] = parameter_bytes(model)
            for engine, how in ENGINES.items():
                server = make_server(model, tokenizer, "model", how)
                hush(server)
                bound = listen("127.0.0.1", 0)
                running.enter_context(serving(server, bound))
                servers[scheme, engine] = address_of(bound)
                checked(f"{scheme}, {engine}", servers[scheme, engine], model, tokenizer)
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in servers}
        firsts: dict[tuple[str, str], list[float]] = {key: [] for key in servers}
        for _ in range(rounds):
            for key, address in servers.items():
                took, answers = clients.submit(ask_all, address).result()
                assert [answer.tokens for answer in answers] == [TOKENS] * CLIENTS
                seconds[key].append(took)
                firsts[key].append(statistics.median(answer.first for answer in answers))
    for (scheme, engine), took in seconds.items():
        float_took = seconds["FP16", engine]
        yield {
            "model": name,
            "scheme": "BF16" if scheme == "FP16" else scheme,
            "engine": engine,
            "clients": CLIENTS,
            "tokens_each": TOKENS,
            "tokens_per_second": round(CLIENTS * TOKENS / statistics.median(took), 2),
            "ratio": round(statistics.median(f / t for f, t in zip(float_took, took, strict=True)), 3),
            "first_token_seconds": round(statistics.median(firsts[scheme, engine]), 3),
            "weight_mb": round(weights[scheme] / 1e6, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as clients:
        for name in options.models.split(","):
            for row in measured(options.work, name, options.rounds, clients):
                print(json.dumps(row), flush=True)
                rows.append(row)
    write_results("serving", rows)


if __name__ == "__main__":
    main()
