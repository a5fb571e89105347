"""Clients that leave, break something or come between others: nothing stays behind, and nobody is mixed up."""

import asyncio
import contextlib
import importlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers.utils.import_utils import is_serve_available

from qllm_hf import QllmConfig
from qllm_hf.loading import load_model, load_tokenizer
from qllm_hf.serving import ending
from qllm_hf.serving import server as servers
from qllm_hf.serving.fitting import Fitting
from qllm_hf.serving.limits import Limits
from qllm_hf.serving.running import hush, serving
from qllm_hf.serving.server import Engine, listen, make_server

pytestmark = [
    pytest.mark.oldest,
    pytest.mark.skipif(not is_serve_available(), reason="needs `pip install 'qllm-hf[serve]'`"),
]

LONG = {"prompt": "Once upon a time", "max_tokens": 1800, "generation_config": '{"eos_token_id": -1}'}
"""Without a token that would end it."""
CACHE = 4096


@pytest.fixture(scope="module")
def load():
    """The clients of `scripts/load_server.py`, as modules."""
    return {name: importlib.import_module(f"load.{name}") for name in ("wire", "nonsense")}


class Running:
    """A server that a test can look into, and a model whose tokens are counted."""

    def __init__(self, port: int, gate, state) -> None:
        self.port, self.gate, self.state = port, gate, state

    def busy(self) -> dict[str, int]:
        """What is under way."""
        found = {"inside": self.gate.inside, "callers": len(self.gate.callers)}
        found["in line"] = sum(len(each._thread) for each in self.state._generate_managers.values())
        engine = getattr(self.state._cb_manager, "_cb", None)
        if engine is not None and engine.batch_processor is not None:
            scheduler, cache = engine.batch_processor.scheduler, engine.batch_processor.cache
            groups = getattr(cache, "group_cache_managers", None) or list(cache.cache_allocators.values())
            found |= {
                "active": len(scheduler.active_requests) + len(scheduler.waiting_requests),
                "pages": sum(len(group.block_table) for group in groups),
                "handlers": len(engine.output_router.result_handlers),
            }
        return {name: count for name, count in found.items() if count}

    def until(self, holds, seconds: float = 20) -> bool:
        """Whether something comes to hold soon."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


@pytest.fixture(scope="module")
def models():
    """{whether requests are decoded together: a model}, since doing so changes the attention of a model."""
    config = QllmConfig(w=4, kv=4)
    return {together: load_model("reference", config, dtype="float32").eval() for together in (False, True)}


@pytest.fixture(scope="module")
def running(models):
    """{whether it decodes requests together: a server that tests share}"""
    with starting(models) as start:
        yield {together: start(together=together) for together in (False, True)}


@pytest.fixture
def steps(models):
    """The forwards of the models so far."""
    found = []
    hooks = [each.register_forward_hook(lambda *_: found.append(time.monotonic())) for each in models.values()]
    yield found
    for hook in hooks:
        hook.remove()


@pytest.fixture
def start(models):
    """Starts a server of a model."""
    with starting(models) as start:
        yield start


@contextlib.contextmanager
def starting(models):
    made, seen = servers.ending_server, []

    def watched(config, gate, close):
        seen.append((gate, close.args[0]))
        return made(config, gate, close)

    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers, "ending_server", watched)

        def start(*, together: bool = False, limits: Limits | None = None, cache: int = CACHE) -> Running:
            engine = Engine(batched=together, cache_tokens=cache)
            server = make_server(models[together], load_tokenizer("reference"), "reference", engine, limits)
            hush(server)
            bound = listen("127.0.0.1", 0)
            stack.enter_context(serving(server, bound))
            return Running(bound.getsockname()[1], *seen[-1])

        yield start


@contextlib.contextmanager
def asking(port: int, raw: bytes):
    """A connection on which something was asked."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(raw)
        yield connection


def reply(load, port: int, raw: bytes):
    async def work():
        async with load["wire"].Wire.to(port) as wire:
            await wire.send(raw)
            return await wire.reply()

    return asyncio.run(asyncio.wait_for(work(), 60))


def text(load, port: int, **fields):
    return reply(load, port, load["wire"].request("/v1/completions", {"prompt": "Once", "max_tokens": 4} | fields))


@pytest.mark.parametrize("together", [False, True], ids=["one after another", "together"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_nothing_is_written_for_a_client_that_left(running, load, steps, together, stream):
    running = running[together]
    with asking(running.port, load["wire"].request("/v1/completions", LONG | {"stream": stream})):
        assert running.until(lambda: len(steps) > 3)
        assert running.busy()
    assert running.until(lambda: not running.busy()), running.busy()
    time.sleep(0.1)  # a step that had begun
    written = len(steps)
    time.sleep(0.3)
    assert len(steps) == written < 1000
    assert text(load, running.port).status == 200


def test_who_stands_in_line_can_leave(start, load, steps):
    running = start(limits=Limits(requests=2))
    raw = load["wire"].request("/v1/completions", LONG)
    with asking(running.port, raw):
        assert running.until(lambda: len(steps) > 3)
        with asking(running.port, raw):
            assert running.until(lambda: running.busy().get("in line") == 1)
            assert text(load, running.port).status == 429
        assert running.until(lambda: running.gate.inside == 1), "the place is free while the first is still written"
        assert "in line" not in running.busy()
    assert running.until(lambda: not running.busy())


@pytest.mark.parametrize("together", [False, True], ids=["one after another", "together"])
def test_ids_that_clients_choose_mix_nothing_up(running, load, together):
    running = running[together]
    prompts = [f"{name} saw a" for name in ("Mia", "Tom", "Max", "The dog", "A cat", "Ben")]

    def ask(prompt: str) -> str:
        body = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
        found = reply(load, running.port, load["wire"].request("/v1/completions", body, x_request_id="mine"))
        return found.json()["choices"][0]["text"]

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(ask, prompts)) == alone
    assert len(set(alone)) > 3


@pytest.mark.parametrize("together", [False, True], ids=["one after another", "together"])
def test_a_request_that_breaks_is_the_only_one(running, load, models, monkeypatch, together, caplog):
    running, model = running[together], models[together]
    right = text(load, running.port).json()["choices"]
    broken = model.forward

    def breaks(*args, **kwargs):
        raise RuntimeError('secret "of the host"')

    monkeypatch.setattr(model, "forward", breaks)
    whole = text(load, running.port)
    assert whole.status in ((500, 503) if together else (500,))
    assert whole.json()["error"]["type"] == "server_error" and "secret" not in whole.body.decode()
    monkeypatch.setattr(model, "forward", broken)
    assert reply(load, running.port, load["wire"].request("/health")).status == 200
    assert text(load, running.port).json()["choices"] == right
    monkeypatch.setattr(model, "forward", breaks)
    (event,) = load["wire"].events(text(load, running.port, stream=True).body)
    assert event["error"]["code"] == 500 and "secret" not in event["error"]["message"]
    monkeypatch.setattr(model, "forward", broken)
    assert text(load, running.port).json()["choices"] == right
    assert 'secret "of the host"' in caplog.text, "the host is told"
    assert running.until(lambda: not running.busy()), running.busy()


def test_a_prompt_larger_than_the_cache_that_all_share(start, load, monkeypatch):
    """Alone in the cache it could not be decoded, and transformers' engine would end for everybody."""
    running = start(together=True, cache=512)
    prompt = "the " * 600
    said = text(load, running.port, prompt=prompt)
    assert said.status == 400 and "This model takes 511 at most" in said.json()["error"]["message"]
    assert text(load, running.port).status == 200
    monkeypatch.setattr(Fitting, "_fit", lambda *_: None)
    assert text(load, running.port, prompt=prompt).status in (500, 503), "this check would show nothing"


def test_the_host_bounds_answers_and_time(start, load):
    running = start(limits=Limits(new_tokens=5))
    found = text(load, running.port, max_tokens=100, prompt="Once upon a time", temperature=0).json()
    assert found["usage"]["completion_tokens"] == 5 and found["choices"][0]["finish_reason"] == "length"
    running = start(limits=Limits(seconds=0.5))
    for stream in (False, True):
        found = reply(load, running.port, load["wire"].request("/v1/completions", LONG | {"stream": stream}))
        error = load["wire"].events(found.body)[-1]["error"] if stream else found.json()["error"]
        assert "Ask for fewer tokens" in error["message"]
        assert found.status == (200 if stream else 504)
    assert running.until(lambda: not running.busy())


@pytest.mark.parametrize("together", [False, True], ids=["one after another", "together"])
def test_clients_are_told_that_the_server_ends(models, load, monkeypatch, together):
    monkeypatch.setattr(ending, "GRACE", 0.1)
    before = set(threading.enumerate())
    engine = Engine(batched=together, cache_tokens=CACHE)
    server = make_server(models[together], load_tokenizer("reference"), "reference", engine)
    hush(server)
    bound = listen("127.0.0.1", 0)
    port = bound.getsockname()[1]
    raw = [load["wire"].request("/v1/completions", LONG | {"stream": stream}) for stream in (False, True)]
    with ThreadPoolExecutor(3) as pool:
        with serving(server, bound), socket.create_connection(("127.0.0.1", port)) as idle:
            found = [pool.submit(reply, load, port, each) for each in raw]
            idle.sendall(
                b"POST /v1/completions HTTP/1.1\r\ncontent-length: 9\r\ncontent-type: application/json\r\n\r\n{"
            )
            time.sleep(0.7)
            began = time.monotonic()
        assert time.monotonic() - began < 20, "an answer of 1,800 tokens was waited for"
        whole, stream = (each.result(10) for each in found)
    assert whole.status == 503 and whole.headers["retry-after"]
    assert "this server is ending" in whole.json()["error"]["message"]
    assert "this server is ending" in load["wire"].events(stream.body)[-1]["error"]["message"]
    assert not [thread for thread in set(threading.enumerate()) - before if "generation_loop" in thread.name], (
        "the process would not exit"
    )


def test_connections_on_which_nothing_is_asked(start, load):
    running = start(limits=Limits(idle_seconds=0.5))
    with asking(running.port, b"POST /v1/comp") as slow, asking(running.port, b"") as silent:
        busy = load["wire"].request("/v1/completions", LONG | {"max_tokens": 700})
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(reply, load, running.port, busy)
            slow.settimeout(10), silent.settimeout(10)
            for connection in (slow, silent):
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(100) == b""
            assert answer.result(60).status == 200, "a request that is worked on longer is not cut off"


def test_nonsense(running, load):
    """All of what `scripts/load_server.py` sends now and then, each with its status."""
    running = running[False]
    found, wanted = {}, {}
    for name, (status, raw) in load["nonsense"].NONSENSE.items():
        try:
            said = reply(load, running.port, raw)
        except (ConnectionError, asyncio.IncompleteReadError):
            continue  # cut off while it sent what nobody reads
        found[name], wanted[name] = said.status, status
        if b"Invalid HTTP" not in said.body:  # uvicorn's own words
            assert said.json()["error"]["code"] == status, (name, said)
            assert len(said.body) < 1000, name
    assert found == wanted
    assert len(found) >= len(load["nonsense"].NONSENSE) - 3
    assert running.until(lambda: not running.busy())
    assert text(load, running.port).status == 200
