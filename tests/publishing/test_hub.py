"""Failures of the Hub become sentences, and only those."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qllm_hf.publishing import hub
from qllm_hf.publishing.problems import PublishError


def failure(status: int, said: str, *, message: str = "an error") -> Exception:
    """What huggingface_hub raises for an answer of the Hub."""
    from huggingface_hub.errors import HfHubHTTPError

    response = SimpleNamespace(headers={}, request=None, status_code=status)
    return HfHubHTTPError(message, response=response, server_message=said)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(hub, "FIRST_WAIT", 0.0)


def test_token_is_taken_out_of_what_the_server_says(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    with pytest.raises(PublishError) as caught, hub.explained("x", "a/b"):
        raise failure(403, "the token hf_very_secret may not write")
    assert "hf_very_secret" not in str(caught.value)
    assert "the token hf_*** may not write" in str(caught.value)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("something else"), RuntimeError("bug")])
def test_what_is_no_failure_of_the_hub_is_not_explained_away(error):
    with pytest.raises(type(error)), hub.explained("x", "a/b"):
        raise error


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "does not know you"), (403, "may not do this"), (404, "answered 404"), (409, "somebody changed"),
     (412, "somebody changed"), (429, "too many requests"), (500, "has a problem"), (503, "has a problem")],
)  # fmt: skip
def test_each_status_has_its_sentence(status, said):
    with pytest.raises(PublishError, match=said), hub.explained("x", "a/b"):
        raise failure(status, "")


@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "wrapped"])
def test_only_what_may_pass_is_tried_again(wrap):
    calls = []

    def call(error: Exception) -> None:
        calls.append(error)
        if wrap:  # as uploads do
            raise RuntimeError("Error while uploading") from error
        raise error

    for error, times in ((failure(503, ""), hub.ATTEMPTS), (ConnectionError(), hub.ATTEMPTS), (failure(403, ""), 1)):
        calls.clear()
        with pytest.raises(type(error) if not wrap else RuntimeError):
            hub.retried(call, error)
        assert len(calls) == times


def test_what_passes_is_returned():
    errors: list[Exception] = [ConnectionError(), failure(500, "")]

    def call() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert hub.retried(call) == "done"


def test_connection_errors_of_either_http_library_are_known():
    from huggingface_hub.errors import HfHubHTTPError

    http = next(each for each in HfHubHTTPError.__mro__ if each.__name__ == "HTTPError")
    assert hub.may_pass(http("the line broke"))
    assert not hub.may_pass(ValueError("no line at all"))
