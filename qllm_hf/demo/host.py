"""Who serves a page: which models and results it offers, what visitors may do, and what is held for all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..builtin import REFERENCE
from ..errors import ConfigError, QllmError
from ..loading import config_dict, local_folder
from ..page.html import text
from ..publishing.hub import is_offline
from ..results import Results, read_results
from .holder import Holder
from .limits import Limits, check_model
from .sessions import Sessions

LOG = logging.getLogger(__name__)
UNEXPECTED = "Something went wrong on this page, and its host has been told what. Try again, or choose something else."


@dataclass(frozen=True)
class Host:
    """One page.

    Attributes:
        offered: {name on the page: folder or id on the Hub}; the first one is chosen at the start.
        results: of sweeps, {name on the page: results}.
        limits: of visitors.
        holder, sessions: what all visitors share.
    """

    offered: Mapping[str, str]
    results: Mapping[str, Results]
    limits: Limits
    holder: Holder
    sessions: Sessions = field(default_factory=Sessions)

    def model(self, name: str) -> str:
        """What to load for the name that a visitor gave.

        Raises:
            ConfigError: this page does not load it.
        """
        return check_model(name, self.offered, hub=self.limits.hub)

    def result(self, name: str) -> Results:
        """The results of that name.

        Raises:
            ConfigError: this page does not show them.
        """
        if name not in self.results:
            raise ConfigError(f"there are no results {name!r} on this page.")
        return self.results[name]

    def hide(self, shown: str) -> str:
        """What is shown, with the names of the page in place of folders of the host."""
        folders = {str(results.folder): name for name, results in self.results.items()}
        places = {**{place: name for name, place in self.offered.items()}, **folders}
        for place, name in sorted(places.items(), key=_longest_first):
            for form in (str(Path(place).expanduser().resolve()), place):
                if "/" in form or "\\" in form:
                    shown = shown.replace(form, name)
        return shown

    def explain(self, error: Exception) -> str:
        """What a visitor is told of an error: our own sentence, without folders of the host; else nothing of it."""
        if not isinstance(error, QllmError):
            LOG.error("unexpected error on the page", exc_info=error)
            return UNEXPECTED
        message = self.hide(str(error))
        first, *_ = message.split(" ")
        return message if "=" in first else message[:1].upper() + message[1:]  # names of arguments stay as they are

    def explain_html(self, error: Exception) -> str:
        """The same as a box on the page."""
        return f'<div class="qllm-error" role="alert">{text(self.explain(error))}</div>'


def make_host(
    models: Sequence[str] = (),
    results: Sequence[str | Path] = (),
    limits: Limits | None = None,
    device: str | None = None,
) -> Host:
    """A page that offers some models, the reference model among them, and the results of sweeps.

    Raises:
        CheckpointError: a model or a folder of results cannot be read.
        ModelError: a model is none that can be loaded.
    """
    limits = limits or Limits()
    if is_offline():  # what is in the cache of downloads is the host's, and not everybody's
        limits = replace(limits, hub=False, pushes=False)
    offered: dict[str, str] = {}
    for place in (*models, REFERENCE):
        folder = local_folder(place)
        if place != REFERENCE:
            config_dict(place)
        name = place if folder is None or place == REFERENCE else folder.resolve().name
        offered.setdefault(_free(name, offered, place), place)
    named: dict[str, Results] = {}
    for each in results:
        read = read_results(each)
        named[_free(Path(each).expanduser().resolve().name, named, "")] = read
    return Host(offered, named, limits, Holder(limits.memory_bytes, device))


def _free(name: str, taken: Mapping[str, object], place: str) -> str:
    """A name that nothing else has; the same place keeps its own."""
    if taken.get(name, place) == place and (name not in taken or place):
        return name
    return next(f"{name} ({number})" for number in range(2, len(taken) + 3) if f"{name} ({number})" not in taken)


def _longest_first(entry: tuple[str, str]) -> int:
    return -len(entry[0])
