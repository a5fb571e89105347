"""The question to the published values."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ConfigError
from ..scheme import Scheme
from . import names
from .collection import Published
from .names import Words
from .read import all_scores

Range = tuple[float | None, float | None]
"""From (included) and to (not included); None is open."""


def published(
    *,
    ability: Words | None = None,
    benchmark: Words | None = None,
    subset: Words | None = None,
    metric: Words | None = None,
    model: Words | None = None,
    family: Words | None = None,
    scheme: Words | Scheme | None = None,
    emergent: Words | None = None,
    params: Range | None = None,
    size: Range | None = None,
    main: bool = False,
) -> Published:
    """The values that the study published, those that fit every argument.

    Each argument takes one name or several, in any spelling.

    Args:
        ability: nlp, emergent, trust, dialogue, long (or the study's names of them).
        benchmark: such as "gsm8k".
        subset: exactly, such as "length=16k", or a beginning with a star: "length=*".
        metric: such as "mc1".
        model: as the study or the Hub names it.
        family: such as "LLaMA2".
        scheme: such as "W4A8"; "W3-awq" for codes chosen by AWQ, which "W3" alone does not mean.
        emergent: icl, if, cmr, mmr, sc.
        params: from (included) and to (not included), in billions; None is open. Of a mixture of experts, all of them.
        size: the same of the dense size that a model behaves like; 7 for Mixtral-8x7B.
        main: only the metric of each benchmark that the study goes by.

    Raises:
        ConfigError: a name that the data does not have, or a range that is none.

    Source: github.com/thu-nics/qllm-eval at 6d047af (arXiv 2402.18158).

    >>> from qllm_hf.published.query import published
    >>> [(row.value, row.fp16) for row in published(model="LLaMA2-7B", benchmark="lambada", scheme="w3")]
    [(66.61, 73.32)]
    """
    rows = Published(all_scores())
    given_scheme = (str(scheme),) if isinstance(scheme, Scheme) else names.words(scheme)
    questions: tuple[tuple[str, tuple[str, ...] | None, Callable[[str], str]], ...] = (
        ("ability", names.words(ability), names.ability_name),
        ("benchmark", names.words(benchmark), names.benchmark_name),
        ("metric", names.words(metric), names.metric_name),
        ("model", names.words(model), names.model_name),
        ("family", names.words(family), names.family_name),
        ("scheme", given_scheme, names.scheme_name),
        ("emergent", names.words(emergent), names.emergent_name),
    )
    for attribute, given, resolve in questions:
        if given is not None:
            allowed = {resolve(text) for text in given}
            rows = rows.where(lambda row, key=attribute, allowed=allowed: getattr(row, key) in allowed)  # type: ignore[misc]
    if (subsets := names.words(subset)) is not None:
        rows = rows.where(lambda row: any(_is(row.subset, name) for name in subsets))
        if not rows:
            known = dict.fromkeys(row.subset for row in all_scores() if row.subset)
            if not any(_is(there, name) for there in known for name in subsets):
                raise ConfigError(f"subset={subset!r}: there is none of this name. There are {names.listed(known)}.")
    for name, attribute, limits in (("params", "params_b", params), ("size", "size_b", size)):
        if limits is not None:
            low, high = _range(name, limits)
            rows = rows.where(lambda row, key=attribute, low=low, high=high: low <= getattr(row, key) < high)  # type: ignore[misc]
    return rows.where(lambda row: row.is_main) if main else rows


def _is(subset: str, name: str) -> bool:
    return subset.startswith(name[:-1]) if name.endswith("*") else subset == name


def _range(name: str, limits: Range) -> tuple[float, float]:
    low, high = (limit if limit is not None else edge for limit, edge in zip(limits, (0.0, float("inf")), strict=True))
    if not 0 <= low < high:
        raise ConfigError(
            f"{name}={limits!r}: give (from, to) in billions of parameters, from below to, such as (6, 13)."
        )
    return low, high
