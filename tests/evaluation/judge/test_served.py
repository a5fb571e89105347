"""The whole of MT-Bench with a judge that another program serves: `transformers serve`, as a user would start it."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM
from transformers.utils.import_utils import is_serve_available

from qllm_hf import QllmConfig
from qllm_hf.builtin import reference_model
from qllm_hf.errors import JudgeError
from qllm_hf.evaluation.judge.cached import CachedJudge
from qllm_hf.evaluation.judge.cost import estimate, parse_price
from qllm_hf.evaluation.judge.http import HttpJudge
from qllm_hf.evaluation.judge.mt_bench import (
    Answered,
    answer_questions,
    conversations,
    questions_from_rows,
    rate,
    summarise,
)
from qllm_hf.evaluation.judge.prompts import DEFAULT_PROMPTS, read_prompts
from qllm_hf.loading import load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="needs `pip install 'transformers[serving]'`"),
]

SAYS = " Rating: [[7]]"
QUESTIONS = (84, 97, 106, 116, 125, 142)  # writing, roleplay, reasoning, math, coding, stem
ANSWER_TOKENS = 24
JUDGEMENT_TOKENS = 24


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(reference_model())


@pytest.fixture(scope="module")
def judge_folder(tokenizer, tmp_path_factory) -> str:
    """A model that writes `SAYS` after any prompt: it sees the last 12 tokens only, and was trained on noise before."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=12,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = MistralForCausalLM(config)
    before, after = (
        torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("<|end|>\n<|assistant|>\n", SAYS + "<|end|>")
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        noise = torch.randint(len(tokenizer), (16, 16))
        ids = torch.cat([noise, before.expand(16, -1), after.expand(16, -1)], dim=1)
        labels = torch.full_like(ids, -100)
        labels[:, -len(after) :] = after
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05, "the judge did not learn its one sentence"
    folder = tmp_path_factory.mktemp("judge")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of `transformers serve`, which loads the folder that a request names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [Path(sys.executable).parent / "transformers", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--device", "cpu"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "QLLM_HF_AUTOLOAD": "1"},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not is_up(url):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def answered(shared, tokenizer) -> list[Answered]:
    """Real questions with what the reference model writes to them."""

    def read(name: str):
        path = shared / "data" / "dialogue" / f"mt_bench_{name}.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    model = AutoModelForCausalLM.from_pretrained(reference_model(), dtype=torch.float32).eval()

    def chat(dialogues, temperature, max_new_tokens):
        assert max_new_tokens == 1024  # more than a model of this size has to say
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        texts = []
        for dialogue in dialogues:
            prompt = tokenizer.apply_chat_template(
                dialogue, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            with torch.inference_mode():
                output = model.generate(**prompt, max_new_tokens=ANSWER_TOKENS, eos_token_id=2, **sampling)
            texts.append(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
        return texts

    questions = [
        question
        for question in questions_from_rows(read("question"), read("reference_answer_gpt-4"))
        if question.id in QUESTIONS
    ]
    torch.manual_seed(0)
    return answer_questions(chat, questions)


def test_mt_bench_over_http(shared, server, judge_folder, answered, tmp_path):
    prompts = read_prompts(shared / "data" / "dialogue" / "mt_bench_judge_prompts.jsonl")
    cache = tmp_path / "judgements.jsonl"
    judge = CachedJudge(HttpJudge(server, judge_folder), cache)
    before = estimate(conversations(answered, prompts), cache=judge, price=parse_price("30,60"))
    assert (before.calls, before.cached) == (12, 0) and before.dollars > 0
    ratings = rate(judge, answered, prompts)
    assert {rating.judgement for rating in ratings} == {SAYS}
    assert summarise(ratings) == {
        "score": 7.0,
        "stderr": 0.0,
        "turn_1": 7.0,
        "turn_2": 7.0,
        "categories": dict.fromkeys(("writing", "roleplay", "reasoning", "math", "coding", "stem"), 7.0),
        "parsed": 12,
        "dropped": 0,
    }
    # a second run asks nothing: there is nobody at this address
    again = CachedJudge(HttpJudge("http://127.0.0.1:9", judge_folder, retries=0), cache)
    assert estimate(conversations(answered, prompts), cache=again).calls == 0
    assert rate(again, answered, prompts) == ratings
    assert len(cache.read_text().splitlines()) == 12


def test_a_judge_that_cannot_judge(server, answered):
    """The reference model knows no rating; the server gives what it writes, and the summary says that it is none."""
    judge = HttpJudge(server, reference_model(), max_tokens=JUDGEMENT_TOKENS)
    ratings = rate(judge, answered[:2], DEFAULT_PROMPTS)
    with pytest.raises(JudgeError, match=r"gave no rating in 4 answers\. The first one: "):
        summarise(ratings)


def test_the_server_takes_a_packed_checkpoint(server, tokenizer, tmp_path, cannot_run):
    """It was told of qllm_hf by QLLM_HF_AUTOLOAD alone. `qllm-hf serve` is tested in tests/serving."""
    if not metadata.entry_points(group="torch.backends", name="qllm_hf"):
        cannot_run("needs the installed package: make test")
    model = load_model("reference", QllmConfig(w=4, kv=8), dtype="float32").eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = [{"role": "user", "content": "Mia has 3 apples and gets 4 more. How many?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    expected = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert HttpJudge(server, str(tmp_path), max_tokens=ANSWER_TOKENS).ask(asked) == expected


def test_a_model_that_the_server_does_not_have(server, tmp_path):
    judge = HttpJudge(server, str(tmp_path / "nothing"), retries=0)
    with pytest.raises(JudgeError, match=r"nothing.*did not answer in 1 attempt; the last one: status 500"):
        judge.ask([{"role": "user", "content": "Are you there?"}])
