"""What a page offers, and what it says of its host: nothing."""

import json

import pytest

from qllm_hf.config import QllmConfig
from qllm_hf.demo.endpoints import endpoints
from qllm_hf.demo.host import UNEXPECTED, make_host
from qllm_hf.demo.limits import Limits
from qllm_hf.errors import CheckpointError, ConfigError
from qllm_hf.loading import load_model, load_tokenizer, save_model
from qllm_hf.publishing import hub


def test_models_go_by_their_names_not_by_their_folders(stories):
    host = make_host([str(stories)])
    assert list(host.offered) == ["stories260K", "reference"]
    assert host.model("stories260K") == str(stories)
    with pytest.raises(ConfigError, match="Choose one of stories260K, reference"):
        host.model(str(stories))


def test_two_folders_of_one_name_get_two_names(tmp_path):
    for name in ("a", "b"):
        config = QllmConfig(w=4)
        save_model(load_model("reference", config), load_tokenizer("reference"), tmp_path / name / "same")
    host = make_host([str(tmp_path / "a" / "same"), str(tmp_path / "b" / "same")])
    assert list(host.offered) == ["same", "same (2)", "reference"]


def test_what_cannot_be_read_is_said_to_the_host_at_once(tmp_path):
    with pytest.raises(CheckpointError):
        make_host([str(tmp_path)])
    with pytest.raises(CheckpointError, match="no results"):
        make_host(results=[tmp_path])


def test_messages_do_not_name_folders_of_the_host(stories, tmp_path):
    host = make_host([str(stories)])
    said = host.explain(CheckpointError(f"'{stories}' cannot be read: {stories.resolve()}/config.json is damaged."))
    assert str(stories) not in said and str(stories.resolve()) not in said
    assert said == "'stories260K' cannot be read: stories260K/config.json is damaged."


def test_answers_do_not_either(stories):
    """Advice names the model it is about, which to the library is a folder."""
    host = make_host([str(stories)])
    asked = endpoints(host, ConfigError, lambda: "visitor")
    for found in (
        asked["recommend"](model="stories260K", abilities="nlp"),
        asked["push_plan"]("ann/x", "W4", "stories260K", "mit"),
        asked["tensors"]("stories260K"),
    ):
        assert str(stories) not in json.dumps(found)
    assert asked["recommend"](model="stories260K", abilities="nlp")["situation"]["model"] == "stories260K"


def test_what_was_not_foreseen_is_told_to_the_host_only(caplog):
    said = make_host().explain(RuntimeError("secret of the host"))
    assert said == UNEXPECTED
    assert "secret of the host" in caplog.text


def test_errors_are_text(caplog):
    assert "<script" not in make_host().explain_html(ConfigError("<script>1</script>"))


def test_names_of_arguments_keep_their_case():
    host = make_host()
    assert host.explain(ConfigError("model='x': none")) == "model='x': none"
    assert host.explain(ConfigError("there is none")) == "There is none"


def test_offline_visitors_reach_neither_the_cache_nor_the_hub(monkeypatch):
    """What was downloaded there may be private."""
    monkeypatch.setattr("qllm_hf.demo.host.is_offline", lambda: True)
    host = make_host(limits=Limits(hub=True, pushes=True))
    assert (host.limits.hub, host.limits.pushes) == (False, False)
    monkeypatch.setattr("qllm_hf.demo.host.is_offline", lambda: False)
    assert make_host(limits=Limits(hub=True)).limits.hub
    assert hub.is_offline(), "of the tests"
