"""Which method chooses the codes, and its options: names and defaults, without torch.

A method has up to two steps, joined by "+": one that moves magnitude between activations and weights without
changing what the float model computes (awq, smoothquant), and one that rounds (rtn, gptq). The step that is not
named is the plain one: "awq" rounds to nearest, "gptq" moves nothing, "awq+gptq" does both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import ConfigError, did_you_mean

RTN, AWQ, SMOOTHQUANT, GPTQ = "rtn", "awq", "smoothquant", "gptq"
SCALINGS, ROUNDINGS = (AWQ, SMOOTHQUANT), (RTN, GPTQ)
METHODS = (RTN, AWQ, SMOOTHQUANT, GPTQ, f"{AWQ}+{GPTQ}", f"{SMOOTHQUANT}+{GPTQ}")
AUTO = "auto"


@dataclass(frozen=True)
class AwqOptions:
    """Activation-aware weight quantization (arXiv 2306.00978).

    Attributes:
        steps: points of the grid of exponents r = 0, 1/steps, ..; a channel's scale is mean|x|^r.
        clip: also search for each group the range that its largest weights are clipped to.
        clip_steps, clip_least: points of that grid, from the whole range down to this part of it.
        stored: a file with the result of an earlier search, `{"scale": .., "clip": ..}`, that is applied instead.
    """

    steps: int = 20
    clip: bool = True
    clip_steps: int = 20
    clip_least: float = 0.5
    stored: str | None = None


@dataclass(frozen=True)
class SmoothQuantOptions:
    """SmoothQuant (arXiv 2211.10438).

    Attributes:
        alpha: s = max|x|^alpha / max|w|^(1 - alpha) for each channel; "auto" takes for each layer the alpha of
            `grid` whose quantized output is closest to the float one.
        grid: what "auto" chooses from.
    """

    alpha: float | str = 0.5
    grid: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class GptqOptions:
    """GPTQ (arXiv 2210.17323).

    Attributes:
        act_order: columns in the order of falling activation; the groups stay those of the packed format.
        block_size: columns that are rounded before the rest of the matrix is corrected.
        damping: part of the mean of the Hessian's diagonal that is added to it.
        clip: search for each group the range that costs least, as AWQ does, before rounding.
        clip_steps, clip_least: points of that grid, from the whole range down to this part of it.
        correction: part of what earlier rounded blocks changed in a layer's input that its weights make up for.
        refine: look at each column once more when all are rounded.
    """

    act_order: bool = True
    block_size: int = 128
    damping: float = 0.01
    clip: bool = True
    clip_steps: int = 20
    clip_least: float = 0.5
    correction: float = 0.5
    refine: bool = True


Options = AwqOptions | SmoothQuantOptions | GptqOptions
OPTIONS: Mapping[str, type[Options]] = {AWQ: AwqOptions, SMOOTHQUANT: SmoothQuantOptions, GPTQ: GptqOptions}


def check_method(method: Any) -> str:
    """The method itself. Raises ConfigError if there is none of that name."""
    if method not in METHODS:
        raise ConfigError(f"method={method!r}: allowed are {', '.join(METHODS)}.{did_you_mean(str(method), METHODS)}")
    return str(method)


def scaling_of(method: str) -> str | None:
    """The step that moves magnitude: "awq", "smoothquant" or None."""
    return next((step for step in method.split("+") if step in SCALINGS), None)


def rounding_of(method: str) -> str:
    """The step that rounds: "rtn" or "gptq"."""
    return next((step for step in method.split("+") if step in ROUNDINGS), RTN)


def options_of(method: str, given: Mapping[str, Any] | None) -> dict[str, Options]:
    """The options of each step of a method, from one flat mapping.

    Raises:
        ConfigError: an option that no step of this method has, or a value that cannot be.
    """
    left = dict(given or {})
    steps = {}
    for step in method.split("+"):
        if step not in OPTIONS:
            continue
        names = [field.name for field in fields(OPTIONS[step])]
        values = {name: left[name] for name in names if name in left}
        steps[step] = _checked(step, OPTIONS[step](**values))
    known = [field.name for step in steps for field in fields(OPTIONS[step])]
    unknown = next((name for name in left if name not in known), None)
    if unknown is not None:
        hint = did_you_mean(unknown, known)
        allowed = f"allowed are {', '.join(dict.fromkeys(known))}" if known else "it has none"
        raise ConfigError(f"method_options: {unknown!r} is no option of method {method!r}.{hint} {allowed}.")
    return steps


_LIMITS: Mapping[str, tuple[type | tuple[type, ...], float, float]] = {
    "steps": (int, 1, 1000),
    "clip_steps": (int, 1, 1000),
    "clip_least": ((int, float), 0.01, 1.0),
    "block_size": (int, 1, 65536),
    "correction": ((int, float), 0.0, 1.0),
    "damping": ((int, float), 0.0, 10.0),
}


def _checked(step: str, options: Options) -> Options:
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in _LIMITS:
            kind, low, high = _LIMITS[field.name]
            number: Any = value
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= number <= high:
                raise ConfigError(f"{step}: {field.name}={value!r}: give a number from {low} to {high}.")
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise ConfigError(f"{step}: {field.name}={value!r}: give True or False.")
    if isinstance(options, SmoothQuantOptions):
        alphas = options.grid if options.alpha == AUTO else (options.alpha,)
        for alpha in alphas:
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
                raise ConfigError(f"{step}: alpha={alpha!r}: give a number from 0 to 1, or {AUTO!r}.")
    return options
