"""Words that people give -> names of the data, or an error that says which there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from ..errors import ConfigError, SchemeError, did_you_mean
from ..scheme import Scheme
from .benchmarks import ABILITIES, BENCHMARKS, EMERGENT, STUDY_ABILITIES
from .read import all_scores, models

AWQ: Final = "-awq"

Words = str | Iterable[str]
"""One name, or several."""

_VERSION: Final = re.compile(r"-v\d+(\.\d+)*$")
_EMERGENT_WORDS: Final = {"cmr": ("c-mr",), "mmr": ("m-mr",)}


def scheme_name(text: str | Scheme) -> str:
    """The scheme as the data has it: "KV4" for "kv4", "W3-awq" for "w3-AWQ".

    Raises:
        ConfigError: no scheme, or none that was published.
    """
    given = str(text).strip()
    bare, suffix = (given[: -len(AWQ)], AWQ) if given.lower().endswith(AWQ) else (given, "")
    known = list(dict.fromkeys(score.scheme for score in all_scores()))
    try:
        name = str(Scheme.parse(bare)) + suffix
    except SchemeError as error:
        raise ConfigError(f"scheme={given!r}: {error}{did_you_mean(given.upper(), known)}") from None
    if name not in known:
        raise ConfigError(f"scheme={given!r}: nothing was published for it. There are {', '.join(known)}.")
    return name


def ability_name(text: str) -> str:
    """Our name of an ability: "nlp" for "basic_nlp".

    Raises:
        ConfigError: there is no such ability.
    """
    aliases = {theirs: ours for ours, theirs in STUDY_ABILITIES.items()}
    return _resolve("ability", text, {name: (name,) for name in ABILITIES}, aliases)


def emergent_name(text: str) -> str:
    """The short name of an emergent ability: "cmr" for "C-MR".

    Raises:
        ConfigError: there is no such ability.
    """
    names = {short: (short, title, *_EMERGENT_WORDS.get(short, ())) for short, title in EMERGENT.items()}
    return _resolve("emergent", text, names)


def benchmark_name(text: str) -> str:
    """The benchmark as the data has it: "gsm8k" for "GSM8K".

    Raises:
        ConfigError: the study published nothing for it.
    """
    return _resolve("benchmark", text, {name: (name, each.title) for name, each in BENCHMARKS.items()})


def metric_name(text: str) -> str:
    """A metric of the data.

    Raises:
        ConfigError: there is no such metric.
    """
    names = dict.fromkeys(metric for benchmark in BENCHMARKS.values() for metric in benchmark.units)
    return _resolve("metric", text, {name: (name,) for name in names})


def family_name(text: str) -> str:
    """The family as the study has it: "LLaMA2" for "llama-2".

    Raises:
        ConfigError: the study has no such family.
    """
    return _resolve("family", text, {model.family: (model.family,) for model in models().values()})


def model_name(text: str) -> str:
    """The model as the study has it: "LLaMA2-7B-chat" for "meta-llama/Llama-2-7b-chat-hf".

    Raises:
        ConfigError: it is no model of the study.
    """
    bare = text.strip().rpartition("/")[2].removesuffix("-hf")
    names = {name: (name,) for name in models()}
    return _resolve("model", text, names, given=_VERSION.sub("", bare))


def study_model(text: str) -> str | None:
    """The study's name of a model, or None if it is not one of its models."""
    try:
        return model_name(text)
    except ConfigError:
        return None


def listed(names: Iterable[str], limit: int = 24) -> str:
    """Names with commas between; of a long list its beginning, and how many more there are."""
    shown = list(names)
    rest = len(shown) - limit // 2
    return ", ".join(shown) if len(shown) <= limit else f"{', '.join(shown[: limit // 2])} and {rest} more"


def words(given: Words | None) -> tuple[str, ...] | None:
    """One name or several as a tuple; None stays None."""
    return (given,) if isinstance(given, str) else None if given is None else tuple(given)


def _resolve(
    what: str,
    text: str,
    names: Mapping[str, Iterable[str]],
    aliases: Mapping[str, str] | None = None,
    given: str | None = None,
) -> str:
    """The name one of whose spellings is the text, but for case, hyphens and spaces."""
    spellings = {_plain(spelling): name for name, all_of in names.items() for spelling in all_of}
    spellings |= {_plain(alias): name for alias, name in (aliases or {}).items()}
    found = spellings.get(_plain(text if given is None else given))
    if found is None:
        lower = {name.lower(): name for name in names}
        hint = did_you_mean(str(text).lower(), lower, {alias: name.lower() for alias, name in (aliases or {}).items()})
        for low, name in lower.items():
            hint = hint.replace(f"{low!r}", f"{name!r}")
        raise ConfigError(f"{what}={text!r}: the study has none of this name. There are {listed(names)}.{hint}")
    return found


def _plain(text: str) -> str:
    """Without case, hyphens, underscores and spaces; a dot stays, or OPT-1.3B would be OPT-13B."""
    return re.sub(r"[-_\s]", "", str(text)).lower()
