"""The running page, asked by programs: its API, its MCP server, and several visitors at once."""

import asyncio
import importlib.util
import json
import threading
import time
from pathlib import Path

import pytest

from qllm_hf.builtin import reference_model
from qllm_hf.demo import app

gradio_client = pytest.importorskip("gradio_client")
STORY = "Once upon a time there was a dog. One day"
NAMES = {"compare", "scheme", "recommend", "abilities", "items", "tensors", "histogram", "push_plan"}


@pytest.fixture(scope="module")
def client(page):
    return gradio_client.Client(page.url, verbose=False)


def ask(client, name, *args, **options):
    return client.predict(*args, api_name=f"/{name}", **options)


def test_every_endpoint_is_named_and_described(client, page):
    import httpx

    described = httpx.get(f"{page.url}/gradio_api/info").json()["named_endpoints"]
    assert {name.strip("/") for name in described} == NAMES
    assert all(each["description"] for each in described.values())


def test_two_schemes_answer(client):
    found = ask(client, "compare", "I am Mia. I have a red kite and a blue drum.", right="W2KV2")
    assert found["left"]["scheme"] == "FP16"
    assert found["left"]["text"].startswith("Hello Mia")
    assert found["right"]["weight_bytes"] < found["left"]["weight_bytes"]
    assert found["right"]["only_here"]


def test_the_rest_answers_as_the_library_does(client):
    assert ask(client, "scheme", "w3kv2")["scheme"] == "W3KV2"
    assert "kv=9" in ask(client, "scheme", "W3KV9")["error"]
    assert ask(client, "recommend", model="reference", memory="8MB", abilities="dialogue")["scheme"]
    assert ask(client, "abilities", "sweep")["kept"]["W2"]["nlp"] < 1
    assert [item["id"] for item in ask(client, "items", "sweep", "W2", "mini_cloze")] == [1, 2]
    assert {row["kind"] for row in ask(client, "tensors")} == {"W", "A", "K", "V"}
    found = ask(client, "histogram", "model.layers.0.self_attn.q_proj", bits=2)
    assert sum(found["before"]) == sum(found["after"]) == 256 * 256
    assert "README.md" in {file["name"] for file in ask(client, "push_plan", "ann/tiny")["files"]}


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("compare", {"message": "hi", "right": "W9"}, "w=9: allowed are 2"),
        ("compare", {"message": "x" * 100_000}, "100,000 characters; this page takes 4,000"),
        ("compare", {"message": "hi", "model": "/etc/passwd"}, "no model that this page can load"),
        ("compare", {"message": "hi", "model": "../../etc"}, "no model that this page can load"),
        ("compare", {"message": "hi", "model": "nobody/nothing"}, "the Hub"),
        ("compare", {"message": "hi", "left": "FP16", "right": "W8", "model": "sweep/x/y"}, "no model that this page"),
        ("recommend", {"memory": "much"}, "much"),
        ("abilities", {"source": "../../etc"}, "model"),
        ("items", {"source": "/etc", "scheme": "W2", "task": "../../passwd"}, "no results '/etc'"),
        ("items", {"source": "sweep", "scheme": "../..", "task": "../../passwd"}, None),
        ("histogram", {"tensor": "../../etc/passwd"}, "no weight"),
        ("push_plan", {"repo": "../x"}, "is no id on the Hub"),
        ("push_plan", {"repo": "ann/tiny", "scheme": "FP16"}, "FP16 quantizes nothing"),
    ],
)
def test_what_cannot_be_is_one_sentence(client, page, name, values, words):
    if words is None:
        assert ask(client, name, **values) == []
        return
    with pytest.raises(Exception, match=words) as caught:
        ask(client, name, **values)
    assert str(page.home) not in str(caught.value)
    assert "Traceback" not in page.log.read_text()


@pytest.fixture(scope="module")
def on_the_hub(local_hub):
    """A model for everybody, one of the host alone, and one that says of itself that it is large."""
    files = {path.name: path.read_bytes() for path in Path(reference_model()).iterdir() if path.is_file()}
    large = {
        **json.loads(files["config.json"]),
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
    }
    repositories = {"public": files, "private": files, "large": {**files, "config.json": json.dumps(large).encode()}}
    for name, contents in repositories.items():
        local_hub.store.create(f"host/{name}", "host", private=name == "private")
        local_hub.store.put(f"host/{name}", contents)
    return local_hub


def test_a_model_of_the_hub_is_compared_by_its_id(client, on_the_hub):
    message = "I am Mia. I have a red kite and a blue drum."
    here, there = (ask(client, "compare", message, right="W4", model=name) for name in ("reference", "host/public"))
    for side in ("left", "right"):
        assert there[side]["text"] == here[side]["text"]


def test_the_token_of_the_host_opens_nothing_for_visitors(client, on_the_hub):
    with pytest.raises(Exception, match=r"the Hub did not give it|shows you no"):
        ask(client, "compare", "hi", model="host/private")


def test_a_model_that_is_too_large_is_not_downloaded(client, on_the_hub):
    with pytest.raises(Exception, match=r"As W4KV4 this model takes .* GB of weights, and this page has 9\.00 MB"):
        ask(client, "compare", "hi", left="W4KV4", model="host/large")
    asked = [request.path for request in on_the_hub.requests if "host/large" in request.path]
    assert any("config.json" in path for path in asked)
    assert not any("safetensors" in path for path in asked)


def test_two_visitors_get_their_own_texts_in_turn(page):
    """Each from a client of its own; one after the other is let in, and the texts are those of a lone visitor."""
    words = {"a": "I am Mia. I have a red kite and a blue drum.", "b": "Question: 27+8-5+4=?"}
    alone = {key: ask(gradio_client.Client(page.url, verbose=False), "compare", text) for key, text in words.items()}
    found = {}

    def visit(key: str) -> None:
        found[key] = ask(gradio_client.Client(page.url, verbose=False), "compare", words[key])

    threads = [threading.Thread(target=visit, args=(key,)) for key in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for key in words:
        for side in ("left", "right"):
            assert found[key][side]["text"] == alone[key][side]["text"]
    assert found["a"]["left"]["text"] != found["b"]["left"]["text"]


def test_a_cancelled_visitor_leaves_the_queue(page):
    """A long answer that is waited for no more does not keep the next visitor out."""
    first, second = (gradio_client.Client(page.url, verbose=False) for _ in range(2))
    job = first.submit(STORY, "FP16", "W8", "reference", False, 256, api_name="/compare")
    waiting = second.submit(STORY, "FP16", "W8", "reference", False, 256, api_name="/compare")
    time.sleep(0.3)
    waiting.cancel()
    begin = time.monotonic()
    assert ask(gradio_client.Client(page.url, verbose=False), "compare", "Question: 1+1=?")["left"]["text"]
    assert time.monotonic() - begin < 60
    assert job.result(60)["left"]["finished"] in ("length", "end")


def test_memory_does_not_grow_with_switches(page, client):
    """Other schemes, more than fit at once: the page lets go of them."""
    schemes = [f"W{w}KV{kv}" for w in (2, 4, 6) for kv in (2, 4, 8)]
    for scheme in schemes[:4]:
        ask(client, "compare", "hi", right=scheme, max_new_tokens=2)
    before = page.resident()
    for scheme in schemes:
        ask(client, "compare", "hi", right=scheme, max_new_tokens=2)
    assert page.resident() < 1.1 * before


def test_nothing_large_is_taken(page):
    """Neither as a request nor as a file, which gradio would keep on the disk of the host."""
    import httpx

    large = b"x" * 1_000_001
    assert httpx.post(f"{page.url}/gradio_api/upload", files={"files": ("a", large)}).status_code == 413
    assert httpx.post(f"{page.url}/gradio_api/call/scheme", json={"data": [large.decode()]}).status_code == 413
    assert httpx.post(f"{page.url}/gradio_api/call/scheme", json={"data": ["W4"]}).status_code == 200


def test_tools_of_the_mcp_server(page):
    pytest.importorskip("mcp", reason="needs gradio[mcp]")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def visit():
        async with (
            streamable_http_client(f"{page.url}/gradio_api/mcp/") as (reads, writes, _),
            ClientSession(reads, writes) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            good = await session.call_tool("scheme", {"text": "W3KV2"})
            bad = await session.call_tool("compare", {"message": "hi", "model": "/etc/passwd"})
            return tools, good, bad

    tools, good, bad = asyncio.run(visit())
    assert set(tools) == NAMES
    assert tools["compare"].inputSchema["properties"]["message"]["description"] == "What both are asked."
    assert "keys and values 2 bits" in good.content[0].text
    assert bad.isError and "no model that this page can load" in bad.content[0].text


@pytest.mark.parametrize("there", [True, False])
def test_the_command_says_whether_there_is_an_mcp_server(monkeypatch, there):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
    said = app.announcement("http://here/")
    assert ("MCP server at http://here/gradio_api/mcp/" in said) is there
    assert ("pip install 'gradio[mcp]'" in said) is not there
