"""What visitors type: models, messages, schemes."""

import pytest

from qllm_hf.demo.limits import Limits, check_model, check_prompt, check_scheme, describe_scheme
from qllm_hf.errors import ConfigError, SchemeError

OFFERED = {"reference": "reference", "ours": "/srv/models/ours"}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("reference", "reference"),
        (" ours ", "/srv/models/ours"),
        ("owner/name", "owner/name"),
        ("a/b-1.5_x", "a/b-1.5_x"),
    ],
)
def test_offered_models_and_ids_are_loaded(name, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_model(name, OFFERED, hub=True) == place


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "/srv/models/ours", "../secret", "a/../b", "..", ".", "~", "~/models", "./here", "a/b/c"),
        *("file:///etc", "C:\\models", "name", "", "a/b\0", "a b/c", "owner/", "/owner", "-o/x", "a/" + "b" * 300),
        *("owner/name\n", "https://huggingface.co/a/b", "<b>/x"),
    ],
)
def test_nothing_else_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "owner/name\n":
        assert check_model(name, OFFERED, hub=True) == "owner/name", "spaces around a name do not count"
        return
    with pytest.raises(ConfigError, match="no model that this page can load"):
        check_model(name, OFFERED, hub=True)


def test_a_folder_of_the_host_is_not_told_from_one_that_is_not_there(tmp_path, monkeypatch):
    """transformers would take the folder before the id."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    said = []
    for name, hub in (("here/model", True), ("not/there", False)):
        with pytest.raises(ConfigError) as caught:
            check_model(name, OFFERED, hub=hub)
        said.append(str(caught.value).partition(" is ")[2].partition(".")[0])
    assert said[0] == said[1]


def test_without_the_hub_only_offered_models_are_loaded():
    with pytest.raises(ConfigError, match=r"Choose one of reference, ours\.$"):
        check_model("owner/name", OFFERED, hub=False)


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_message_is_asked_for(text):
    with pytest.raises(ConfigError, match="write a message first"):
        check_prompt(text, Limits())


def test_a_long_message_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"100,000 characters; this page takes 4,000"):
        check_prompt("x" * 100_000, Limits())
    assert check_prompt("x" * 4_000, Limits())


def test_schemes_speak_for_themselves():
    assert str(check_scheme("w3kv2")) == "W3KV2"
    with pytest.raises(SchemeError, match="kv=9: allowed are 2"):
        check_scheme("W3KV9")
    with pytest.raises(SchemeError, match="100,000 characters"):
        check_scheme("W" * 100_000)


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("FP16", "everything stays"),
        ("W4g-1A8", "per output channel, activations 8"),
        ("KV4", "KV4: keys and values 4 bits"),
    ],
)
def test_a_scheme_is_described(scheme, words):
    assert words in describe_scheme(check_scheme(scheme))
