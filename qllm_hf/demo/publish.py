"""Publishing from the page: a packed model in a folder of its own, its card, the plan of a push, and the push itself.

A token is an argument of one call. It is kept in no attribute, no state and no file, and no message repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from .. import __version__
from ..config import QllmConfig
from ..errors import ConfigError
from ..loading import check_float, load_model, load_tokenizer, save_model
from ..page.html import folded, text
from ..publishing.card import MadeCard, make_card
from ..publishing.files import Package, pack
from ..publishing.frontmatter import CARD
from ..publishing.hub import explained, is_offline, status_of, user_name
from ..publishing.plan import PushPlan, check_repo, make_push_plan
from ..publishing.plan_text import render_plan
from ..publishing.problems import PublishError
from ..publishing.push import Pushed
from ..publishing.push import push as carry_out
from ..publishing.quantized import Quantized, read_quantized
from ..publishing.recipe import recipe_files
from ..publishing.remote import read_remote
from ..scheme import Scheme
from ..scratch import temporary_folder
from .host import Host
from .limits import check_scheme

HIDDEN: Final = "hf_***"
_LONGEST_NAME: Final = 96


@dataclass(frozen=True)
class Wish:
    """What a visitor wants to publish.

    Attributes:
        model, scheme: as typed.
        repo: owner/name on the Hub.
        licence: an id, where the base model's card names none.
        results: the name of results that the page shows, or "".
    """

    model: str
    scheme: str
    repo: str
    licence: str = ""
    results: str = ""


@dataclass(frozen=True)
class Preview:
    """The card and the plan."""

    card: str
    plan: PushPlan
    notes: tuple[str, ...]


def preview(host: Host, wish: Wish) -> Preview:
    """The card and the plan of a push; nothing is asked of the Hub but what the base model's card says.

    Raises:
        QllmError: the model cannot be packed, its licence is not known, or the repository can be none.
    """
    with _packed(host, wish) as (model, package, made):
        plan = make_push_plan(None, model, package, None, repo=wish.repo.strip(), compared=False)
        return Preview(made.text, plan, made.notes)


def publish(host: Host, wish: Wish, token: str, *, private: bool = False, endpoint: str | None = None) -> Pushed:
    """Pack the model again and push it: one commit to a new repository, or a pull request.

    Raises:
        PublishError: this page does not push, the token is refused, or the Hub says no.
        QllmError: as `preview`.
    """
    if not host.limits.pushes or is_offline():
        raise PublishError("this page does not push. Run it on your own machine: qllm-hf demo, or use qllm-hf push.")
    secret = token.strip()
    if not secret:
        raise PublishError("give a token with the right to write, from huggingface.co/settings/tokens.")
    from huggingface_hub import HfApi

    api: Any = HfApi(endpoint=endpoint, token=secret, library_name="qllm_hf", library_version=__version__)
    with _without(secret):
        check_repo(wish.repo.strip())
        _check_token(api)
        with _packed(host, wish) as (model, package, _), explained("what you push", wish.repo):
            remote = read_remote(api, wish.repo.strip(), "main")
            plan = make_push_plan(api, model, package, remote, repo=wish.repo.strip())
            plan.check_results()
            return carry_out(api, plan, private=private or None)


def preview_html(found: Preview) -> str:
    """The plan and the card, as text."""
    notes = "".join(f"<li>{text(note)}</li>" for note in found.notes)
    said = f"<ul>{notes}</ul>" if notes else ""
    card = folded("README.md, as it will be", _pre(found.card))
    return (
        f'<div class="qllm-stack"><div class="qllm-card" role="status"><h3>What a push would send</h3>'
        f'<p class="qllm-hint">Not compared with the Hub yet; that happens when it is pushed.</p>{said}'
        f"<pre tabindex='0'>{text(render_plan(found.plan))}</pre></div>"
        f'<div class="qllm-card"><h3>The model card</h3>{card}</div></div>'
    )


@contextmanager
def _packed(host: Host, wish: Wish) -> Iterator[tuple[Quantized, Package, MadeCard]]:
    """The packed model in a folder that is gone afterwards, what of it goes to the Hub, and its card."""
    repo, scheme = wish.repo.strip(), check_scheme(wish.scheme)
    check_repo(repo)
    if scheme == Scheme():
        raise ConfigError("FP16 quantizes nothing. Choose fewer bits, such as W4KV8.")
    if len(repo) > _LONGEST_NAME:
        raise ConfigError(f"the name has {len(repo)} characters; the Hub takes {_LONGEST_NAME}.")
    place = host.model(wish.model)
    check_float(place)
    host.holder.check(place, (str(scheme),))
    results = host.result(wish.results).folder if wish.results else None
    licence: Mapping[str, str | None] = {"license": wish.licence.strip() or None}
    with temporary_folder("qllm-demo") as temporary:
        config = QllmConfig.from_scheme(str(scheme))
        loaded = load_model(place, config)
        words = ["qllm-hf", "quantize", wish.model.strip(), "--scheme", str(scheme)]
        folder = temporary / repo.rpartition("/")[2]
        save_model(loaded, load_tokenizer(place), folder, others=recipe_files(place, loaded, words))
        del loaded
        model = read_quantized(folder)
        made = make_card(model, results=results, repo=repo, licence=licence)
        (folder / CARD).write_text(made.text, encoding="utf-8")
        package = pack(model, repo, None)
        yield model, Package({**package.contents, **made.others}, package.left_out, made.notes), made


def _check_token(api: Any) -> None:
    """Raises PublishError if the Hub does not know the token, in words for a page rather than a command line."""
    try:
        user_name(api)
    except PublishError as error:
        if isinstance(error.__cause__, Exception) and status_of(error.__cause__) == 401:
            raise PublishError(
                "the Hub does not accept this token. Make one with the right to write at "
                "huggingface.co/settings/tokens, and paste it again."
            ) from None
        raise


@contextmanager
def _without(secret: str) -> Iterator[None]:
    """A server may repeat what it was sent: no error that leaves holds the token."""
    try:
        yield
    except PublishError as error:
        # without its cause, whose headers hold the token
        raise PublishError(str(error).replace(secret, HIDDEN)) from None
    except Exception as error:
        if secret in repr(error):
            raise PublishError(f"the Hub did not take it ({type(error).__name__}).") from None
        raise


def _pre(content: str) -> str:
    return f"<pre tabindex='0'>{text(content)}</pre>"
