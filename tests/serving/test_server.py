"""The server, asked by OpenAI's own client over a socket: what it answers, and what it does not do."""

import json
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers.utils.import_utils import is_serve_available

from qllm_hf import QllmConfig
from qllm_hf.builtin import reference_model
from qllm_hf.errors import ConfigError, MissingExtraError
from qllm_hf.loading import load_model, load_tokenizer
from qllm_hf.serving import server as module
from qllm_hf.serving.limits import Limits
from qllm_hf.serving.running import hush, load_server, name_of, serving
from qllm_hf.serving.server import Engine, address_of, listen, make_server

pytestmark = [
    pytest.mark.oldest,
    pytest.mark.skipif(not is_serve_available(), reason="needs `pip install 'qllm-hf[serve]'`"),
]

TOKENS = 16
QUESTIONS = [
    "Mia has 3 apples and gets 4 more. How many?",
    "Tom is at the park. Where is Tom?",
    "Once upon a time",
    "Say hello to Max.",
    "Which is larger, 7 or 9?",
    "The dog is red. What is red?",
    "Tell me of a cat.",
    "Count to three.",
]


def served(config, engine=None, limits=None):
    """A running server and an address, as a context."""
    server, name = load_server("reference", config, engine=engine, limits=limits, dtype="float32")
    assert name == "reference"
    hush(server)
    bound = listen("127.0.0.1", 0)
    return serving(server, bound), address_of(bound)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A packed checkpoint on disk, with its tokenizer."""
    folder = tmp_path_factory.mktemp("served") / "model-w4kv4"
    load_model("reference", QllmConfig(w=4, kv=4), dtype="float32").save_pretrained(folder)
    load_tokenizer("reference").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(packed):
    """What the same checkpoint writes to each question in this process."""
    model, tokenizer = load_model(str(packed), dtype="float32").eval(), load_tokenizer(str(packed))
    return [written(model, tokenizer, question) for question in QUESTIONS]


def written(model, tokenizer, question: str) -> str:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def address(packed):
    server, name = load_server(str(packed), dtype="float32")
    assert name == "model-w4kv4", "and not the folder it lies in"
    hush(server)
    bound = listen("127.0.0.1", 0)
    with serving(server, bound):
        yield address_of(bound)


def client(address: str):
    import openai

    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(address: str, question: str, model: str = "model-w4kv4", **options):
    return client(address).chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        **({"max_tokens": TOKENS} | options),
    )


def post(address: str, path: str, body: bytes | dict, **headers: str) -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_eight_clients_at_a_time_get_what_the_checkpoint_writes(address, expected):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda question: ask(address, question), QUESTIONS))
    assert [answer.choices[0].message.content for answer in answers] == expected
    assert len(set(expected)) > 4, "the questions would not show that answers were mixed up"
    assert {answer.model for answer in answers} == {"model-w4kv4"}
    assert all(0 < answer.usage.completion_tokens <= TOKENS for answer in answers)


def test_streams_and_raw_completions(address, packed, expected):
    stream = ask(address, QUESTIONS[0], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected[0]
    model, tokenizer = load_model(str(packed), dtype="float32").eval(), load_tokenizer(str(packed))
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
    text = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    completion = client(address).completions.create(model="model-w4kv4", prompt="Once upon a time", max_tokens=TOKENS)
    assert completion.choices[0].text == text


@pytest.mark.parametrize("scheme", ["FP16", "KV2", "W4A8KV4"])
def test_requests_that_are_decoded_together(scheme):
    """Over transformers' paged cache, which is in floating point, keys and values mean what the scheme says."""
    config = None if scheme == "FP16" else QllmConfig.from_scheme(scheme)
    model, tokenizer = load_model("reference", config, dtype="float32").eval(), load_tokenizer("reference")
    alone = [written(model, tokenizer, question) for question in QUESTIONS]
    running, address = served(config, Engine(batched=True, cache_tokens=4096))
    with running, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda question: ask(address, question, "reference"), QUESTIONS))
        said = post(address, "/v1/completions", {"model": "reference", "prompt": "Once", "frequency_penalty": 0.5})
        assert said[0] == 400 and "repetition_penalty=1.0" in said[1] and "repetition_penalty=1.5" in said[1]
    assert [answer.choices[0].message.content for answer in answers] == alone
    if scheme != "FP16":
        floats = load_model("reference", dtype="float32").eval()
        assert alone != [written(floats, tokenizer, question) for question in QUESTIONS], "the scheme changed nothing"


def test_only_the_one_model_can_be_asked_for(address):
    (entry,) = client(address).models.list().data
    assert (entry.id, entry.scheme) == ("model-w4kv4", "W4KV4")
    body = {"model": reference_model(), "prompt": "x", "max_tokens": 2}
    status, said = post(address, "/v1/completions", body)
    assert status == 400 and "model-w4kv4" in said
    assert post(address, "/load_model", {"model": reference_model()})[0] == 400
    assert '"ready"' in post(address, "/load_model", {"model": "model-w4kv4"})[1]
    assert post(address, "/reset", {})[0] == 404, "anyone could unload the model"
    assert post(address, "/v1/audio/transcriptions", {})[0] == 404


def test_a_prompt_that_does_not_fit(address):
    status, said = post(address, "/v1/completions", {"model": "model-w4kv4", "prompt": "word " * 3000})
    assert status == 400 and "tokens. This model takes 2047 at most" in said
    for stream in (True, False):
        status, said = post(
            address,
            "/v1/chat/completions",
            {"model": "model-w4kv4", "messages": [{"role": "user", "content": "word " * 3000}], "stream": stream},
        )
        assert status == 400 and "2047" in said


def test_an_answer_ends_where_the_model_does(address):
    """1,024 tokens are asked for, and there is room for fewer."""
    prompt = "the " * 2030
    said = client(address).completions.create(model="model-w4kv4", prompt=prompt, max_tokens=1024)
    assert said.usage.total_tokens <= 2048
    assert said.usage.prompt_tokens > 2020


def test_requests_that_are_too_large_or_too_many(packed):
    server, _ = load_server(str(packed), limits=Limits(requests=2, body_bytes=1000))
    hush(server)
    bound = listen("127.0.0.1", 0)
    with serving(server, bound):
        address = address_of(bound)
        body = {"model": "model-w4kv4", "prompt": "Once", "max_tokens": 600}
        assert post(address, "/v1/completions", body | {"prompt": "x" * 2000})[0] == 413
        with ThreadPoolExecutor(6) as pool:
            found = [status for status, _ in pool.map(lambda _: post(address, "/v1/completions", body), range(6))]
        assert sorted(set(found)) == [200, 429] and found.count(200) >= 2
        assert post(address, "/v1/completions", body | {"max_tokens": 2})[0] == 200, "the places are free again"


def test_a_tokenizer_without_a_chat_template(packed):
    model, tokenizer = load_model(str(packed)), load_tokenizer(str(packed))
    tokenizer.chat_template = None
    server = make_server(model, tokenizer, "plain")
    hush(server)
    bound = listen("127.0.0.1", 0)
    with serving(server, bound):
        address = address_of(bound)
        status, said = post(address, "/v1/chat/completions", {"model": "plain", "messages": []})
        assert status == 400 and "no chat template" in said
        assert post(address, "/v1/completions", {"model": "plain", "prompt": "x", "max_tokens": 1})[0] == 200


def test_names_and_addresses_that_cannot_be(packed, tmp_path):
    assert name_of("owner/name") == "owner/name"
    with pytest.raises(ConfigError, match=r"'a b' cannot be the name of a served model"):
        make_server(load_model(str(packed)), load_tokenizer(str(packed)), "a b")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"cannot listen at 127\.0\.0\.1:\d+: .*another --port"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_without_what_serving_needs(monkeypatch):
    monkeypatch.setattr(module, "is_serve_available", lambda: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'qllm-hf\[serve\]'"):
        make_server(None, None, "x")


def test_the_server_leaves_no_thread_behind(packed):
    before = {thread.name for thread in threading.enumerate()}
    server, _ = load_server(str(packed))
    hush(server)
    with serving(server, listen("127.0.0.1", 0)):
        pass
    assert "qllm-hf serve" not in {thread.name for thread in threading.enumerate()} - before
