"""Two processes at once on one repository of the Hub, and on one cache of what comes from there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from publishing.hub_client import Client
from publishing.hub_server import Hub
from publishing.models import quantized

ANN = "ann"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """HF_HOME of all processes."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def clients(hub, home) -> Iterator[list[Client]]:
    """Three processes with one cache."""
    started = [Client(hub, home) for _ in range(3)]
    yield started
    for each in started:
        each.process.kill()
        each.close()


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    return quantized(tmp_path_factory.mktemp("mine") / "model", "reference", "W4KV8", "--max-shard-size", "1MB")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    return quantized(tmp_path_factory.mktemp("theirs") / "model", "reference", "W2")


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if "safetensors" in path.name}


def weights_on(hub: Hub, repo: str) -> dict[str, bytes]:
    return {path: hub.store.read(repo, path) for path in hub.store.paths(repo) if "safetensors" in path}


@pytest.mark.parametrize("moment", ["/repos/create", "/preupload/", "/commit/"])
def test_of_two_that_push_at_once_one_is_told(hub, clients, mine, theirs, moment):
    """Neither overwrites the other, and no commit is a mixture of two models; also where both saw no repository yet."""
    ann, repo = hub.token(ANN), f"{ANN}/at-once{moment.strip('/').replace('/', '-')}"
    first, second, _ = clients
    push = ("--direct", "--yes")
    hub.fail("POST", moment, "meanwhile", change=lambda: second.run("push", theirs, repo, *push, token=ann))
    said = first.run("push", mine, repo, *push, token=ann, code=1).stderr
    assert f"somebody changed {repo} in the meantime" in said and "run the command again" in said
    assert weights_on(hub, repo) == shards_of(theirs)
    first.run("push", mine, repo, *push, "--overwrite-results", token=ann)
    assert weights_on(hub, repo) == shards_of(mine), "and nothing of theirs"


def test_one_cache_serves_two_and_survives_a_kill(hub, home, clients, theirs):
    asks, waits, killed = clients
    asks.run("push", theirs, f"{ANN}/cached", "--yes", token=hub.token(ANN))
    expected = asks.logits(theirs)
    shutil.rmtree(home / "hub", ignore_errors=True)

    hub.fail("GET", "/storage/", "hang")
    with ThreadPoolExecutor(2) as pool:
        never = pool.submit(ask, killed)
        wait_for(lambda: "/storage/" in hub.requests[-1].path)
        found = pool.submit(ask, waits)
        wait_for(lambda: hub.requests[-1].method == "HEAD" and "model.safetensors" in hub.requests[-1].path)
        killed.process.kill()
        assert (never.result(120), found.result(120)) == (None, expected)
    assert asks.logits(f"{ANN}/cached") == expected
    assert [path.name for path in home.rglob("*.safetensors")] == ["model.safetensors"], "the weights are there once"


def ask(client: Client) -> str | None:
    """Logits, or None where the process ended."""
    try:
        return client.logits(f"{ANN}/cached")
    except AssertionError:
        return None


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
