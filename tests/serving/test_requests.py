"""What a request may say, without a server."""

import json

import pytest
from transformers import GenerationConfig
from transformers.utils.import_utils import is_serve_available

from qllm_hf.loading import load_model
from qllm_hf.serving.faults import RefusedError
from qllm_hf.serving.requests import Allowed, check_request
from qllm_hf.serving.sampling import check_sampling

pytestmark = pytest.mark.skipif(not is_serve_available(), reason="needs `pip install 'qllm-hf[serve]'`")

ALLOWED = Allowed(tokens=100, characters=8)


def check(body: bytes | dict, kind: bytes = b"application/json") -> None:
    check_request("/v1/completions", kind, body if isinstance(body, bytes) else json.dumps(body).encode(), ALLOWED)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 10**30, "temperature": 0, "top_p": 1, "n": 1, "seed": -1, "stop": ["a", "b"], "stream": False},
        {"max_tokens": None, "temperature": None, "stop": None, "n": None},
        {"temperature": 0.01, "stop": "x" * 256, "frequency_penalty": 0.5, "logit_bias": {"3": -100}},
        {"chat_template_kwargs": {"enable_thinking": False}, "generation_config": '{"top_k": 3}'},
        {"prompt": "x" * 800},
        {"messages": [{"role": "user", "content": "hi"}] * 100},
        {"model": "x" * 10_000},
    ],
)
def test_what_can_be_asked(fields):
    check(fields)
    check(fields, b"application/json; charset=utf-8")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, "max_tokens=0 cannot be. Give a whole number from 1."),
        ({"max_tokens": True}, "max_tokens=True"),
        ({"max_tokens": 2.5}, "max_tokens=2.5"),
        (b'{"max_tokens": 1e400}', "max_tokens=inf"),
        ({"n": 2}, "one answer"),
        ({"temperature": 1e-320}, "0, or a number from 0.01 to 100"),
        ({"top_p": 0}, "top_p=0"),
        ({"seed": 2**63}, "64 bits|to 9223372036854775807|seed="),
        ({"stop": ["x"] * 17}, "up to 16"),
        ({"stop": ""}, "1 to 256 characters"),
        ({"stop": ["x" * 257]}, "stop="),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"stream": "yes"}, "true or false"),
        ({"chat_template_kwargs": {"chat_template": "{{ x }}"}}, "the model's own template"),
        ({"chat_template_kwargs": {"x": ["a"]}}, "plain values"),
        ({"generation_config": "{"}, "generation_config is no JSON object"),
        ({"generation_config": {}}, "a text that holds a JSON object"),
        ({"prompt": "x" * 801}, "801 characters. This model takes 100 tokens, and none of them has more than 8"),
        ({"messages": [{"role": "user", "content": "x" * 900}]}, "characters"),
        ({"messages": [{}] * 101}, "101 messages"),
        ({"tools": [{"x" * 900: {"y": 1}}]}, "characters"),
        (b'{"prompt": "\\udc00"}', "half a character"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b'{"prompt": NaN}', "NaN"),
        (b"[]", "not an object"),
        (b"", "no JSON object"),
        (b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
        (b'{"prompt": [' + b"{}," * 200_000 + b"{}]}", "more than 200000 objects"),
    ],
)
def test_what_cannot(fields, words):
    with pytest.raises(RefusedError, match=words) as found:
        check(fields)
    assert found.value.status == 400 and len(str(found.value)) < 400


@pytest.mark.parametrize("kind", [b"", b"text/plain", b"application/x-www-form-urlencoded", b"application/jsonp"])
def test_what_a_page_of_another_site_can_send(kind):
    with pytest.raises(RefusedError, match="application/json") as found:
        check({"prompt": "a"}, kind)
    assert found.value.status == 415


@pytest.fixture(scope="module")
def model():
    return load_model("reference")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 5,
            "max_new_tokens": 9,
            "eos_token_id": [1, 2],
            "num_beams": 1,
        },
        {"use_cache": False, "stop_strings": ["a"], "sequence_bias": {(3,): 1.0}, "output_scores": False},
    ],
)
def test_settings_for_clients(model, settings):
    check_sampling(GenerationConfig(**settings), model)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 1000),
        ("num_return_sequences", 2),
        ("output_attentions", True),
        ("guidance_scale", 1.5),
        ("prompt_lookup_num_tokens", 3),
        ("cache_implementation", "offloaded"),
        ("temperature", 1e-320),
        ("max_new_tokens", 0),
        ("max_new_tokens", "many"),
        ("eos_token_id", list(range(100))),
        ("stop_strings", ["x" * 1000]),
        ("sequence_bias", {(10**9,): 1.0}),
        ("compile_config", {"mode": "max-autotune"}),
    ],
)
def test_settings_for_hosts(model, name, value):
    config = GenerationConfig()
    setattr(config, name, value)
    with pytest.raises(RefusedError, match=name if name != "sequence_bias" else "this model has") as found:
        check_sampling(config, model)
    assert found.value.status == 400
