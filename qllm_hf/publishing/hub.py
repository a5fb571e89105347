"""The only place that knows how huggingface_hub fails: each failure becomes one sentence with what to do.

Works with huggingface_hub 1.5 (which stands on httpx) to 2.4 (on httpx2): nothing is imported from either, their
errors are told by the class that `HfHubHTTPError` derives from.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from .. import __version__
from .problems import PublishError

ATTEMPTS: Final = 4
FIRST_WAIT: Final = 1.0
"""Seconds before the second attempt; doubled each time."""
_T = TypeVar("_T")


def hub_api() -> Any:
    """The client: endpoint and token are those of huggingface_hub (HF_ENDPOINT, HF_TOKEN, `hf auth login`)."""
    from huggingface_hub import HfApi

    return HfApi(library_name="qllm_hf", library_version=__version__)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def user_name(api: Any) -> str:
    """Who the token belongs to.

    Raises:
        PublishError: there is no token, or it is not valid.
    """
    with explained("who you are", ""):
        return str(retried(api.whoami)["name"])


def changed_meanwhile(repo: str, because: str = "") -> str:
    """What is said where a plan was compared with what is no longer there."""
    return (
        f"somebody changed {repo} in the meantime{because}. Nothing was lost and nothing overwritten; run the command "
        "again, it compares with what is there now."
    )


@contextlib.contextmanager
def explained(what: str, repo: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into a PublishError.

    Args:
        what: was wanted, as the object of a sentence: "the card of the base model".
        repo: on the Hub.
    """
    try:
        yield
    except PublishError:
        raise
    except Exception as error:
        sentence = _sentence(_cause(error), what, repo)
        if sentence is None:
            raise
        raise PublishError(_without_token(sentence)) from error


def retried(call: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
    """What a call returns; connections that broke and errors of the server are tried again, with growing waits."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call(*arguments, **options)
        except Exception as error:
            if attempt == ATTEMPTS or not may_pass(error):
                raise
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
    raise AssertionError


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: the connection broke, or the server failed."""
    cause = _cause(error)
    status = _status(cause)
    return status >= 500 if status else _is_connection(cause)


def status_of(error: Exception) -> int:
    """The HTTP status behind an error, or 0."""
    return _status(_cause(error))


def _cause(error: Exception) -> Exception:
    """What really happened: uploads and downloads wrap it."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, RuntimeError | LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _status(error: Exception) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _is_connection(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    http = next(each for each in HfHubHTTPError.__mro__ if each.__name__ == "HTTPError")
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return (isinstance(error, http) and not _status(error)) or isinstance(error, ConnectionError | TimeoutError)


def _sentence(error: Exception, what: str, repo: str) -> str | None:
    from huggingface_hub import errors

    status = _status(error)
    said = str(getattr(error, "server_message", "") or "").strip().split("\n")[0]
    because = f" ({said.rstrip('.')})" if said else ""
    if isinstance(error, errors.OfflineModeIsEnabled) or (
        isinstance(error, errors.LocalEntryNotFoundError) and is_offline()
    ):
        return f"{what} needs the Hub, and HF_HUB_OFFLINE=1 forbids that. Unset it and run the command again."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "the Hub wants to know who you are. Log in with `hf auth login`, or set HF_TOKEN."
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{what} is gated{because}. Ask for access on the page of {repo}, log in with `hf auth login`, and run the "
            "command again."
        )
    if status == 401 and any(word in str(error).lower() for word in ("credentials", "expired", "invalid user token")):
        return f"the Hub refused your token{because}. Make a new one and log in: `hf auth login`, or set HF_TOKEN."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no such branch or commit. Make the branch on the Hub first, or leave out --revision."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the Hub shows you no {repo}: it does not exist, or is private. Check the spelling, and log in with "
            "`hf auth login` if it is yours."
        )
    if status == 401:
        return f"the Hub does not know you{because}. Log in with `hf auth login`, or set HF_TOKEN."
    if status == 403:
        return f"your token may not do this to {repo}{because}. Use one with the right to write there, or another REPO."
    if status in (409, 412):
        return changed_meanwhile(repo, because)
    if status == 429:
        return f"the Hub asks you to wait: too many requests{_wait(error)}. Run the command again after that."
    if status >= 500:
        return f"the Hub has a problem ({status}){because}. Run the command again later; it goes on where it stopped."
    if status == 400 or (isinstance(error, ValueError) and "metadata" in str(error)):
        first = said or str(error).strip().replace("\n", " ")
        return f"the Hub does not accept {what}: {first}"
    if _is_connection(error) or isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"the connection to the Hub broke ({type(error).__name__}) while it was asked for {what}. Run the command "
            "again; what was sent is not sent twice."
        )
    if status:
        return f"the Hub answered {status} when it was asked for {what}{because}."
    return None


def _wait(error: Exception) -> str:
    headers = getattr(getattr(error, "response", None), "headers", {})
    seconds = headers.get("Retry-After", "")
    return f", for {seconds} seconds" if seconds else ""


def _without_token(text: str) -> str:
    """A server may repeat what it was sent; the token never reaches the screen."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "hf_***") if token else text
