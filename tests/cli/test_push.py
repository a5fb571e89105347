"""`qllm-hf push` against a local Hub that speaks the real protocol, with the real client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from publishing.hub_client import Client, command, environment
from publishing.hub_server import Hub
from publishing.models import change_recipe, quantized, results, run

from qllm_hf.publishing.merge import BEGIN, END

pytestmark = pytest.mark.oldest

ANN, BOB = "ann", "bob"
LEFT = "notes.txt", "optimizer.pt", ".git/config", "evil.pkl", "modeling_own.py", "other.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The reference model as W4KV8."""
    return quantized(tmp_path_factory.mktemp("push") / "model-w4kv8")


@pytest.fixture(scope="module")
def scores(folder, tmp_path_factory) -> Path:
    """Results of it."""
    return results(tmp_path_factory.mktemp("scores") / "results", folder)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory) -> Iterator[Client]:
    started = Client(hub, tmp_path_factory.mktemp("home"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def ann(hub) -> str:
    """Ann's token."""
    return hub.token(ANN)


@pytest.fixture(autouse=True)
def scenario(hub, request) -> Iterator[None]:
    """Every test begins without faults; QLLM_HUB_LOG=FILE keeps what the server was asked in it."""
    hub.faults.clear()
    since = len(hub.requests)
    yield
    if path := os.environ.get("QLLM_HUB_LOG"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"## {request.node.name}\n{hub.log(since)}\n\n")


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "model-w4kv8")


@pytest.fixture
def published(hub, client, ann, copy, scores, request) -> str:
    """A repository of Ann's that holds the model with its card, on main."""
    repo = f"{ANN}/{request.node.name}".replace("[", "-").replace("]", "")
    client.run("push", copy, repo, "--results", scores, "--yes", "--quiet", token=ann)
    return repo


def states(said: dict) -> dict[str, str]:
    return {file["path"]: file["state"] for file in said["files"]}


def test_new_repository_is_filled_at_once(hub, client, ann, copy, scores):
    for name in LEFT:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"not for others")
    (copy / "config.link.json").symlink_to(copy / "config.json")
    said = client.run("push", copy, f"{ANN}/new", "--results", scores, "--yes", "--json", "--private", token=ann).json
    assert (said["creates_repo"], said["opens_pull_request"]) == (True, False)
    assert set(said["left_out"]) == {*LEFT, "config.link.json"}
    paths = hub.store.paths(f"{ANN}/new")
    assert paths == states(said).keys() | {".gitattributes"}
    assert {"README.md", "qllm_recipe.json", ".eval_results/qllm_gsm8k.yaml", "qllm_results/records.jsonl"} < paths
    assert hub.store.repositories[f"{ANN}/new"].private
    assert said["bytes_to_send"] == sum(len(hub.store.read(f"{ANN}/new", path)) for path in states(said))
    weights = hub.store.read(f"{ANN}/new", "model.safetensors")
    assert weights == (copy / "model.safetensors").read_bytes()
    assert len(hub.store.repositories[f"{ANN}/new"].commits) == 2, "git's own, and one"
    assert said["pushed"]["commit"] == hub.store.repositories[f"{ANN}/new"].refs["main"]


def test_card_is_read_back_as_it_was_written(hub, published):
    content = hub.store.read(published, "README.md").decode()
    card = ModelCard(content)
    assert card.content == content
    assert {each.metric_config: each.metric_value for each in card.data.eval_results} == {
        "mini_stories": 1.225,
        "qllm_calibration": 0.539,
        "qllm_gsm8k": 0.49,
        "qllm_mmlu": 0.588,
    }
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert f'name = "{published}"' in card.text
    assert card.data.model_name == published.rpartition("/")[2]


def test_a_second_push_sends_nothing(hub, client, ann, copy, published):
    since = len(hub.requests)
    said = client.run("push", copy, published, "--yes", "--json", token=ann).json
    # the card in the folder has no scores; those on the Hub are of the same weights and stay
    changed = {path for path, state in states(said).items() if state != "same"}
    assert changed == {"README.md"}
    assert not hub.uploaded(since)
    assert len(hub.store.repositories[published].requests) == 1


def test_change_becomes_a_pull_request(hub, client, ann, copy, published, scores):
    (copy / "generation_config.json").write_text('{"max_new_tokens": 7}')
    done = client.run("push", copy, published, "--results", scores, "--yes", token=ann)
    assert f"{hub.url}/{published}/discussions/1" in done.stdout
    assert json.loads(hub.store.read(published, "generation_config.json", "refs/pr/1")) == {"max_new_tokens": 7}
    assert hub.store.read(published, "generation_config.json") != b'{"max_new_tokens": 7}', "main is as it was"
    again = client.run("push", copy, published, "--results", scores, "--yes", "--json", token=ann).json
    assert again["pushed"]["was_there"], "the same pull request is not opened twice"
    assert len(hub.store.repositories[published].requests) == 1
    client.run("push", copy, published, "--results", scores, "--direct", "--yes", token=ann)
    assert json.loads(hub.store.read(published, "generation_config.json")) == {"max_new_tokens": 7}


def test_anybody_may_open_a_pull_request_and_only_writers_push(hub, client, copy, published, scores):
    (copy / "generation_config.json").write_text("{}")
    bob = hub.token(BOB)
    message = client.run("push", copy, published, "--results", scores, "--direct", "--yes", token=bob, code=1).stderr
    assert "your token may not do this" in message
    client.run("push", copy, published, "--results", scores, "--yes", token=bob)
    assert hub.store.repositories[published].requests[0].author == BOB


def test_dry_run_shows_the_difference_and_sends_nothing(hub, client, ann, copy, published):
    (copy / "README.md").write_text("---\nwidget: x\n---\n# My words\n")
    since = len(hub.requests)
    page = client.run("push", copy, published, "--dry-run", token=ann).stdout
    assert "+widget: x" in page
    assert "README.md on the Hub" in page
    assert "To send:" in page
    assert {request.method for request in hub.requests[since:]} <= {"GET", "HEAD"}


def test_words_of_others_stay_on_the_card(hub, client, ann, copy, published, scores):
    there = hub.store.read(published, "README.md").decode().replace("license:", "widget: [a]\nlicense:")
    section = there[there.index(BEGIN) : there.index(END) + len(END)]
    theirs = there.replace(section, f"# Words before\n\n{BEGIN}\nold\n{END}\n\nWords after\n")
    hub.store.put(published, {"README.md": theirs.encode()})
    client.run("push", copy, published, "--results", scores, "--direct", "--yes", token=ann)
    now = hub.store.read(published, "README.md").decode()
    assert "# Words before" in now and "Words after" in now and "\nold\n" not in now
    assert section in now
    assert ModelCard(now).data.to_dict()["widget"] == ["a"]


def test_weights_that_are_left_over_are_deleted(hub, client, ann, published, tmp_path):
    assert "model.safetensors" in hub.store.paths(published)
    shards = quantized(tmp_path / "shards", "reference", "W4KV8", "--max-shard-size", "1MB")
    said = client.run("push", shards, published, "--direct", "--yes", "--json", "--overwrite-results", token=ann).json
    assert states(said)["model.safetensors"] == "deleted"
    left = {path for path in hub.store.paths(published) if "safetensors" in path}
    assert left == {path.name for path in shards.iterdir() if "safetensors" in path.name}


def test_other_scores_are_replaced_only_when_asked(hub, client, ann, copy, published, tmp_path):
    other = results(tmp_path / "other", copy, scheme="W4KV8", shots=5)
    refused = client.run("push", copy, published, "--results", other, "--yes", token=ann, code=1).stderr
    for task, value in (("qllm_gsm8k", "0.49"), ("mini_stories", "1.225")):
        assert f"{task}: " in refused
        assert f"{value} (items 1319, shots 4" in refused and f"{value} (items 1319, shots 5" in refused
    assert "--overwrite-results" in refused
    assert not hub.store.repositories[published].requests
    client.run("push", copy, published, "--results", other, "--yes", "--direct", "--overwrite-results", token=ann)
    card = ModelCard(hub.store.read(published, "README.md").decode())
    assert {each.metric_args["shots"] for each in card.data.eval_results} == {5}


def test_somebody_else_was_faster(hub, client, ann, copy, published, scores):
    """Their change comes after the plan was made and before the commit."""
    before = hub.store.repositories[published].refs["main"]
    (copy / "generation_config.json").write_text('{"max_new_tokens": 8}')
    arguments = ("push", copy, published, "--results", scores, "--direct", "--yes")
    hub.fail("POST", "/preupload/", kind="change", change=lambda: hub.store.put(published, {"NOTICE": b"theirs"}))
    message = client.run(*arguments, token=ann, code=1).stderr
    assert "somebody changed" in message and "run the command again" in message
    assert hub.store.repositories[published].refs["main"] != before
    assert hub.store.read(published, "NOTICE") == b"theirs"
    client.run(*arguments, token=ann)
    assert hub.store.read(published, "NOTICE") == b"theirs"
    assert json.loads(hub.store.read(published, "generation_config.json")) == {"max_new_tokens": 8}


def test_a_broken_line_is_tried_again(hub, client, ann, tmp_path):
    folder = quantized(tmp_path / "model", "reference", "W2")  # weights that the server does not have yet
    hub.fail("PUT", "/storage/", kind="drop", after=100_000)
    hub.fail("GET", "/api/models/", status=503)
    since = len(hub.requests)
    client.run("push", folder, f"{ANN}/broken", "--yes", token=ann)
    puts = [(each.status, each.received) for each in hub.requests[since:] if each.method == "PUT"]
    assert puts == [(0, 100_000), (200, (folder / "model.safetensors").stat().st_size)]
    assert hub.store.read(f"{ANN}/broken", "model.safetensors") == (folder / "model.safetensors").read_bytes()


def test_a_run_that_died_goes_on_with_what_is_missing(hub, ann, tmp_path):
    shards = quantized(tmp_path / "shards", "reference", "W3KV8", "--max-shard-size", "600KB")
    files = {sha256(path.read_bytes()).hexdigest(): path.stat().st_size for path in shards.glob("*.safetensors")}
    assert len(files) >= 3
    hub.fail("PUT", "/storage/", kind="hang", skip=1, times=100)
    since, arguments = len(hub.requests), ("push", shards, f"{ANN}/resumed", "--yes", "--direct")
    process = subprocess.Popen(command(*arguments), env=environment(hub, tmp_path, ann), cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (hub.store.objects.keys() & files.keys()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    first = hub.store.objects.keys() & files.keys()
    assert len(first) == 1, "one file has arrived"
    assert hub.store.paths(f"{ANN}/resumed") == {".gitattributes"}, "and nothing is committed"
    hub.faults.clear()
    since = len(hub.requests)
    done = subprocess.run(
        command(*arguments), env=environment(hub, tmp_path, ann), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ann not in done.stdout + done.stderr, "the token"
    assert hub.uploaded(since) == {oid: size for oid, size in files.items() if oid not in first}
    for path in shards.glob("*.safetensors"):
        assert hub.store.read(f"{ANN}/resumed", path.name) == path.read_bytes()


@pytest.mark.parametrize("extra", ["--direct", ""], ids=["commit", "pull_request"])
def test_an_answer_that_was_lost_is_not_sent_twice(hub, client, ann, copy, published, scores, extra):
    (copy / "generation_config.json").write_text('{"max_new_tokens": 9}')
    hub.fail("POST", "/commit/", kind="lose")
    arguments = ["push", copy, published, "--results", scores, "--yes", "--json", *([extra] if extra else [])]
    said = client.run(*arguments, token=ann).json
    repository = hub.store.repositories[published]
    assert said["pushed"]["was_there"]
    assert said["pushed"]["commit"] == repository.refs["main" if extra else "refs/pr/1"]
    assert len(repository.requests) == (0 if extra else 1)
    assert len(repository.commits) == 3


def test_errors_of_the_server_pass(hub, client, ann, copy, published, scores):
    (copy / "generation_config.json").write_text('{"max_new_tokens": 10}')
    hub.fail("POST", "/commit/", status=500, times=2)
    client.run("push", copy, published, "--results", scores, "--direct", "--yes", token=ann)
    (copy / "generation_config.json").write_text('{"max_new_tokens": 11}')
    hub.fail("POST", "/commit/", status=502, times=99)
    message = client.run("push", copy, published, "--results", scores, "--direct", "--yes", token=ann, code=1).stderr
    assert "the Hub has a problem (502)" in message
    assert json.loads(hub.store.read(published, "generation_config.json")) == {"max_new_tokens": 10}


def test_too_many_requests(hub, client, ann, folder):
    hub.fail("POST", "/repos/create", status=429, headers=(("Retry-After", "37"),))
    message = client.run("push", folder, f"{ANN}/limited", "--yes", token=ann, code=1).stderr
    assert "too many requests, for 37 seconds" in message


def test_tokens_that_do_not_help(hub, client, folder):
    arguments = ("push", folder, f"{ANN}/private", "--yes")
    assert "hf auth login" in client.run(*arguments, code=1).stderr
    for token in (hub.token(ANN, expired=True), "hf_nobody_knows_this"):
        message = client.run(*arguments, token=token, code=1).stderr
        assert "refused your token" in message and "hf auth login" in message
    message = client.run(*arguments, token=hub.token(BOB), code=1).stderr
    assert "may not do this" in message
    assert f"{ANN}/private" not in hub.store.repositories


def test_names_and_branches_that_are_none(client, ann, folder, published):
    assert "no id on the Hub" in client.run("push", folder, "name", "--dry-run", token=ann, code=1).stderr
    arguments = ("push", folder, published, "--revision", "v2", "--dry-run")
    assert "has no such branch" in client.run(*arguments, token=ann, code=1).stderr
    arguments = ("push", folder, f"{ANN}/nothing", "--revision", "v2", "--dry-run")
    assert "there is no ann/nothing yet" in client.run(*arguments, token=ann, code=1).stderr


def test_a_branch_is_changed_and_main_is_not(hub, client, ann, copy, published, scores):
    repository = hub.store.repositories[published]
    repository.refs["v2"] = before = repository.refs["main"]
    (copy / "generation_config.json").write_text('{"max_new_tokens": 12}')
    client.run("push", copy, published, "--results", scores, "--revision", "v2", "--direct", "--yes", token=ann)
    assert repository.refs["main"] == before
    assert json.loads(hub.store.read(published, "generation_config.json", "v2")) == {"max_new_tokens": 12}


def test_round_trip_gives_the_same_logits(client, ann, folder, published):
    here = client.logits(folder)
    assert len(here) == 64
    assert client.logits(published, ann) == here


def test_a_wrong_bit_would_be_noticed(hub, client, ann, folder, published):
    """The check above on a line that changes one bit of the weights."""
    hub.fail("GET", "/storage/", kind="corrupt")
    there = client.logits(published, ann)
    assert len(there) == 64, "it loads"
    assert there != client.logits(folder)


def test_the_base_models_card_is_on_the_hub(hub, client, ann, copy):
    hub.store.create(f"{ANN}/base", ANN)
    base = "---\nlicense: other\nlicense_name: ann-1\nlicense_link: LICENSE\nlanguage: [en, de]\ndatasets: [a/b]\n---\n"
    hub.store.put(f"{ANN}/base", {"README.md": base.encode(), "LICENSE": b"Ann's terms"})
    change_recipe(copy, base=f"{ANN}/base", kind="hub", revision="", card={})
    client.run("push", copy, f"{ANN}/derived", "--yes", token=ann)
    data = ModelCard(hub.store.read(f"{ANN}/derived", "README.md").decode()).data
    assert (data.license, data.license_name, data.license_link) == ("other", "ann-1", "LICENSE")
    assert (data.base_model, data.to_dict()["base_model_relation"]) == (f"{ANN}/base", "quantized")
    assert (data.language, data.datasets) == (["en", "de"], ["a/b"])
    assert hub.store.read(f"{ANN}/derived", "LICENSE") == b"Ann's terms"


def test_the_base_model_is_gated_missing_or_says_no_licence(hub, client, ann, copy):
    hub.store.create(f"{ANN}/gated", ANN, gated=True)
    hub.store.create(f"{ANN}/silent", ANN)
    hub.store.put(f"{ANN}/silent", {"README.md": b"# no block"})
    for base, said in (("gated", "is gated"), ("silent", "names no licence"), ("lost", "shows you no")):
        change_recipe(copy, base=f"{ANN}/{base}", kind="hub", revision="", card={})
        message = client.run("card", copy, token=ann, code=1).stderr
        assert said in message and "--license" in message
        client.run("push", copy, f"{ANN}/never", "--yes", token=ann, code=1)
        done = client.run("card", copy, "--license", "mit", token=ann)
        assert ("was not read" in done.stderr) == (base != "silent")
        assert ModelCard.load(copy / "README.md").data.license == "mit"
        (copy / "README.md").unlink()
    assert f"{ANN}/never" not in hub.store.repositories


def test_offline_says_so_and_still_plans(folder):
    """This process has HF_HUB_OFFLINE=1."""
    message = run("push", folder, "ann/model", "--yes", code=1).stderr
    assert "HF_HUB_OFFLINE=1 forbids to push" in message
    said = json.loads(run("push", folder, "ann/model", "--dry-run", "--json").stdout)
    assert set(states(said).values()) == {"not compared"}
    assert (said["parent"], said["creates_repo"]) == (None, False)


def test_nobody_is_asked_where_nobody_is(folder):
    assert "--yes" in run("push", folder, "ann/model", code=2).stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal that can be played")
@pytest.mark.skipif("QLLM_TEST_TRANSFORMERS" in os.environ, reason="asking is the same with any of them")
@pytest.mark.parametrize(("said", "code"), [("n", 1), ("y", 0)])
def test_somebody_at_a_terminal_is_asked(hub, ann, folder, tmp_path, said, code):
    ours, theirs = os.openpty()
    repo = f"{ANN}/answers-{said}"
    words = command("push", folder, repo)
    process = subprocess.Popen(
        words, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(hub, tmp_path, ann),
        text=True, cwd=tmp_path,
    )  # fmt: skip
    os.write(ours, f"{said}\n".encode())
    stdout, stderr = process.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code, stderr
    assert f"Push: a new repository {repo}" in stdout and "Send it?" in stderr
    assert (repo in hub.store.repositories) == (said == "y")


def test_a_card_of_other_weights_is_refused(copy):
    run("card", copy)
    card = (copy / "README.md").read_text()
    digest = sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    (copy / "README.md").write_text(card.replace(digest, "0" * 64))
    message = run("push", copy, "ann/model", "--dry-run", code=1).stderr
    assert "is of other weights" in message and "qllm-hf card" in message


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_files_elsewhere_are_refused(copy, name, tmp_path):
    (copy / name).touch()
    (copy / name).rename(tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    assert f"{name} is a link" in run("push", copy, "ann/model", "--dry-run", code=1).stderr
