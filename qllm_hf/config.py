"""QllmConfig: the `quantization_config` of transformers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from .budget import Choice, allocate
from .errors import CalibrationError, CheckpointError, ConfigError, SchemeError, did_you_mean
from .method import AWQ, RTN, check_method, options_of
from .patterns import first_match
from .scheme import FLOAT_BITS, Scheme
from .sensitivity_table import read_table

QUANT_METHOD = "qllm"
FORMAT = 1
"""Version of the packed checkpoint: names, shapes and meaning of the stored tensors."""

SCHEME_KEYS = tuple(field.name for field in fields(Scheme))
# What may be changed while loading a packed checkpoint: everything that is not baked into its weights.
RUNTIME_KEYS = ("a", "kv", "kv_group_size", "a_symmetric", "kv_symmetric", "kv_rotate_keys")
WEIGHT_KEYS = ("w", "w_group_size", "w_symmetric", "paper_exact")
OTHER_KEYS = (
    "modules_to_not_convert",
    "overrides",
    "quantize_routers",
    "quantize_head",
    "method",
    "method_options",
    "calibration",
    "input_scales",
    "input_orders",
    "format",
)
# For the moment of quantizing only: what came of them is in `calibration`, `overrides` and the weights.
TRANSIENT_KEYS = ("samples", "seqlen", "tokenizer", "bits_per_weight")
NEWER_FLAGS = ("quantize_head", "kv_rotate_keys")
NEWER_KEYS = (*NEWER_FLAGS, "input_orders")
"""Stored only where they say something, so that what was written before they existed compares equal."""
SAMPLES, SEQLEN = 128, 512
BUDGET_W = 4
"""Bits of weights until a budget has been spent: any but 16, with which none would be quantized."""
# Words that other libraries use for the same thing.
ALIASES = {
    "bits": "w",
    "nbits": "w",
    "n_bits": "w",
    "w_bit": "w",
    "w_bits": "w",
    "wbits": "w",
    "weight_bits": "w",
    "load_in_4bit": "w",
    "load_in_8bit": "w",
    "weights": "w",
    "a_bit": "a",
    "a_bits": "a",
    "act_bits": "a",
    "activation_bits": "a",
    "activations": "a",
    "kv_bit": "kv",
    "kv_bits": "kv",
    "kv_cache": "kv",
    "kv_cache_bits": "kv",
    "group_size": "w_group_size",
    "q_group_size": "w_group_size",
    "w_group": "w_group_size",
    "kv_group": "kv_group_size",
    "hadamard": "kv_rotate_keys",
    "rotate_keys": "kv_rotate_keys",
    "sym": "w_symmetric",
    "symmetric": "w_symmetric",
    "skip": "modules_to_not_convert",
    "skip_modules": "modules_to_not_convert",
    "ignore": "modules_to_not_convert",
    "llm_int8_skip_modules": "modules_to_not_convert",
    "modules_to_skip": "modules_to_not_convert",
}
UNSET: Any = type("Unset", (), {"__repr__": lambda self: "unset", "__deepcopy__": lambda self, memo: self})()


class QllmConfig(QuantizationConfigMixin):
    """How a model is quantized, for `from_pretrained(..., quantization_config=QllmConfig(w=4, kv=8))`.

    Args:
        w, a, kv: bits of weights, activations and KV cache: 2 to 8, or 16 to stay in floating point.
        w_group_size: weights per group along in_features (128); -1 per output channel, 0 per matrix.
        kv_group_size: elements per group along head_dim (128); the largest divisor of head_dim not above it is used.
        w_symmetric, a_symmetric, kv_symmetric: quantize without a zero point.
        kv_rotate_keys: turn keys by a Hadamard matrix before they are quantized, and queries with them. It helps models
            whose keys have a few large channels, at 4 bits and below; with others it changes little.
        paper_exact: the published arithmetic bit for bit, corner cases included.
        modules_to_not_convert: patterns of module names that stay in floating point, such as "*.down_proj" or
            "model.layers.0". The output head stays in floating point unless `quantize_head` says otherwise.
        overrides: pattern of module names -> scheme for their weights and activations, such as {"*.down_proj": "W8"}
            or {"model.layers.0.*": "FP16"}; the first match holds. KV bits belong to the whole model.
        quantize_routers: also quantize the routers of a mixture of experts, as the study's code did.
        quantize_head: also quantize the output head of a language model: its weights, to `w` bits or to those of an
            override that names it, such as {"lm_head": "W8"}, rounded to nearest whatever the method. Its input stays
            in floating point, also with `a` bits: a wrong token costs most there. A head that is tied to the embedding
            is untied: the embedding stays in floating point, and the packed head takes memory beside it.
        method: how codes are chosen; "rtn" rounds to nearest. "awq", "smoothquant", "gptq", "awq+gptq" and
            "smoothquant+gptq" look at calibration text first (see `qllm_hf.method`).
        method_options: of the method, such as {"alpha": 0.6} (see `qllm_hf.method`).
        calibration: for these methods: a text file, a dataset on the Hub, "curriculum", texts, or token ids
            int64 [N, T]. In a saved config, what was used: {"source", "samples", "seqlen", "digest"}.
        samples, seqlen: blocks of calibration text, and tokens in each.
        tokenizer: turns calibration text into tokens; by default that of the model.
        bits_per_weight: choose the bits of each layer so that they cost this much on average (`from_budget`).
        input_scales: patterns of layers that multiply their input by a stored vector; methods write this.
        input_orders: patterns of layers that read their input in a stored order; imported checkpoints have this.

    Loading a packed checkpoint with a config of your own changes what is not stored in its weights (a, kv and
    their options); what you do not give keeps the checkpoint's value.

    Raises:
        ConfigError: an unknown key (with the closest known one) or a value that cannot be.
        SchemeError: bits or group sizes that cannot be.
        CheckpointError: the checkpoint's format is newer than this package reads.

    >>> QllmConfig(w=4, kv=8).scheme
    Scheme(w=4, a=16, kv=8, w_group_size=128, kv_group_size=128, ...)
    """

    quant_method: Any
    w: int
    a: int
    kv: int
    w_group_size: int
    kv_group_size: int
    w_symmetric: bool
    a_symmetric: bool
    kv_symmetric: bool
    kv_rotate_keys: bool
    paper_exact: bool

    def __init__(
        self,
        w: int = UNSET,
        a: int = UNSET,
        kv: int = UNSET,
        *,
        w_group_size: int = UNSET,
        kv_group_size: int = UNSET,
        w_symmetric: bool = UNSET,
        a_symmetric: bool = UNSET,
        kv_symmetric: bool = UNSET,
        kv_rotate_keys: bool = UNSET,
        paper_exact: bool = UNSET,
        modules_to_not_convert: list[str] | None = None,
        overrides: Mapping[str, str] | None = None,
        quantize_routers: bool = False,
        quantize_head: bool = False,
        method: str = RTN,
        method_options: Mapping[str, Any] | None = None,
        calibration: Any = None,
        samples: int = SAMPLES,
        seqlen: int = SEQLEN,
        tokenizer: Any = None,
        bits_per_weight: float | None = None,
        input_scales: list[str] | None = None,
        input_orders: list[str] | None = None,
        **others: Any,
    ) -> None:
        self.quant_method = QUANT_METHOD
        _check_others(others)
        self.format = others.get("format", FORMAT)
        w = BUDGET_W if w is UNSET and bits_per_weight is not None else w
        values = dict(zip(SCHEME_KEYS, (w, a, kv, w_group_size, kv_group_size, w_symmetric, a_symmetric, kv_symmetric,
                                        kv_rotate_keys, paper_exact), strict=True))  # fmt: skip
        self._budgeted: dict[str, tuple[int, int]] = {}
        self._given = tuple(key for key, value in values.items() if value is not UNSET)
        given: dict[str, Any] = {key: value for key, value in values.items() if value is not UNSET}
        scheme = Scheme(**given)
        for key in SCHEME_KEYS:
            setattr(self, key, getattr(scheme, key))
        self.modules_to_not_convert = _patterns(modules_to_not_convert)
        self.overrides = _overrides(overrides)
        for name, flag in (("quantize_routers", quantize_routers), ("quantize_head", quantize_head)):
            if not isinstance(flag, bool):
                raise ConfigError(f"{name}={flag!r}: give True or False.")
        self.quantize_routers, self.quantize_head = quantize_routers, quantize_head
        self.method = check_method(method)
        options_of(method, method_options)
        self.method_options = dict(method_options) if method_options else None
        self.calibration = calibration
        self.input_scales = _patterns(input_scales, "input_scales")
        self.input_orders = _patterns(input_orders, "input_orders") or None
        for name, value in (("samples", samples), ("seqlen", seqlen)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r}: give a positive number.")
        self.samples, self.seqlen, self.tokenizer = samples, seqlen, tokenizer
        self.bits_per_weight = _budget(bits_per_weight)
        if self.bits_per_weight is not None and self.w == FLOAT_BITS:
            raise ConfigError(
                f"bits_per_weight={bits_per_weight!r} with w=16: it is the budget of quantized weights. Leave w out."
            )

    @classmethod
    def from_scheme(cls, scheme: str | Scheme, **options: Any) -> QllmConfig:
        """The config of a scheme string such as "W4A8KV4"; options are those of QllmConfig and win over the string.

        >>> QllmConfig.from_scheme("W4KV8", w_group_size=64).scheme.w_group_size
        64
        """
        parsed = scheme if isinstance(scheme, Scheme) else Scheme.parse(scheme)
        values = {key: getattr(parsed, key) for key in SCHEME_KEYS if getattr(parsed, key) != getattr(Scheme, key)}
        return cls(**{**values, **options})

    @classmethod
    def from_budget(
        cls, bits_per_weight: float, sensitivity: Mapping[str, Any] | str | Path | None = None, **options: Any
    ) -> QllmConfig:
        """A config whose layers have different bits, at `bits_per_weight` on average.

        Scales and zero points count: 4.1875 is what W4 in groups of 128 takes.

        Args:
            sensitivity: a table of `measure_sensitivity(...).to_dict()`, or a JSON file of it. Without one, it is
                measured on `calibration` when the float model is loaded.
            options: those of QllmConfig. Layers that `overrides` or `modules_to_not_convert` names are outside of the
                budget.

        Raises:
            ConfigError: the budget is less than the lowest bits cost, or the table is none.
        """
        config = cls(bits_per_weight=bits_per_weight, **options)
        if sensitivity is not None:
            table = read_table(sensitivity)
            try:
                config.spend(table)
            except ConfigError as error:
                raise ConfigError(
                    f"{sensitivity}: {error}" if isinstance(sensitivity, str | Path) else str(error)
                ) from None
        return config

    def spend(self, table: Mapping[str, Any]) -> None:
        """Choose each layer's bits by a sensitivity table, so that they meet `bits_per_weight`; which is then None.

        Raises:
            ConfigError: the budget is less than the lowest bits cost, the table is of another group size or symmetry,
                or it has no layer to choose for.
        """
        assert self.bits_per_weight is not None
        for key, option in (("group_size", "w_group_size"), ("symmetric", "w_symmetric")):
            if table[key] != getattr(self, option):
                raise ConfigError(
                    f"the sensitivity table is for {option}={table[key]}, and this config has "
                    f"{getattr(self, option)}. Measure again, or give {option}={table[key]}."
                )
        outside = (*(self.overrides or ()), *(self.modules_to_not_convert or ()))
        layers = {
            name: tuple(Choice(int(bits), value["size"], value["kl"]) for bits, value in layer["bits"].items())
            for name, layer in table["layers"].items()
            if not first_match(name, outside)
        }
        if not layers:
            raise ConfigError("overrides and modules_to_not_convert leave no layer for bits_per_weight to choose.")
        elements = sum(table["layers"][name]["elements"] for name in layers)
        chosen = allocate(layers, self.bits_per_weight * elements, elements)
        common = Counter(chosen.values()).most_common(1)[0][0]
        inputs = f"A{self.a}" if self.a != FLOAT_BITS else ""
        mixed = {name: f"W{bits}{inputs}" for name, bits in chosen.items() if bits != common}
        self.w, self.overrides = common, {**(self.overrides or {}), **mixed} or None
        sizes = {name: next(c.size for c in layers[name] if c.bits == bits) for name, bits in chosen.items()}
        self._budgeted = {name: (table["layers"][name]["elements"], size) for name, size in sizes.items()}
        self._given = (*self._given, "w")
        self.bits_per_weight = None

    def check_budgeted(self, found: Mapping[str, tuple[int, int]]) -> None:
        """Raises ConfigError if a sensitivity table chose bits and the model is not the one that it was measured on.

        Args:
            found: quantized layer -> (its number of weights, its stored bits).
        """
        if not self._budgeted:
            return
        free = [name for name in found if name in self._budgeted or not first_match(name, self.overrides or {})]
        elements = {name: count for name, (count, _) in self._budgeted.items()}
        for name in (*self._budgeted, *free):
            if name not in found or elements.get(name) != found[name][0]:
                there, here = elements.get(name, "no"), found[name][0] if name in found else "no"
                raise ConfigError(
                    f"the sensitivity table is of another model: it knows {there} weights of {name!r} that are to be "
                    f"quantized, and this model has {here}. Measure this model with these options."
                )
        promised, taken = (sum(sizes[name][1] for name in free) for sizes in (self._budgeted, found))
        if taken > promised:
            raise ConfigError(
                f"by the sensitivity table, the chosen bits take {promised} bits in memory, and in this model {taken}: "
                "its scales have a wider dtype than those of the model that was measured. Measure it as it is here."
            )

    @property
    def scheme(self) -> Scheme:
        """Bits and groups as one value."""
        return Scheme(**{key: getattr(self, key) for key in SCHEME_KEYS})

    def scheme_for(self, override: str) -> Scheme:
        """The scheme of modules that an override names: its bits, with this config's options where it gives none."""
        parsed = Scheme.parse(override)
        group_size = parsed.w_group_size if Scheme.names_weight_group(override) else self.w_group_size
        return replace(self.scheme, w=parsed.w, a=parsed.a, w_group_size=group_size)

    def to_dict(self) -> dict[str, Any]:
        """The keys stored in config.json; `QllmConfig(**config.to_dict())` gives the same config."""
        stored = {
            key: value
            for key, value in self.__dict__.items()
            if not key.startswith("_") and key not in (*TRANSIENT_KEYS, "calibration")
        }
        for name in NEWER_KEYS:
            if not stored[name]:
                del stored[name]
        summary = self.calibration if isinstance(self.calibration, Mapping) else None
        return copy.deepcopy({**stored, "calibration": dict(summary) if summary else None})

    @property
    def imported(self) -> Mapping[str, str] | None:
        """{"quant_method", "made_by"} of the checkpoint of another library that the codes were taken over from."""
        summary = self.calibration if isinstance(self.calibration, Mapping) else {}
        return summary.get("imported")

    @property
    def needs_calibration(self) -> bool:
        """Whether weights can only be chosen after looking at calibration text."""
        if self.bits_per_weight is not None:
            return True
        stored = (self.method_options or {}).get("stored")
        return self.method != RTN and not (stored and self.method == AWQ)

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:  # QllmConfig, or with the unused keys as transformers' other configs
        """The config of a dictionary such as config.json holds. Unknown keys are errors, not ignored."""
        config = cls(**{**config_dict, **kwargs})
        return (config, {}) if return_unused_kwargs else config

    def get_loading_attributes(self) -> dict[str, Any]:
        """What this config, passed to `from_pretrained`, changes in a packed checkpoint's own config.

        Only what was given explicitly. transformers calls this when both exist; what is baked into the packed
        weights is handed over under another name, for the quantizer to compare.
        """
        changes = {key: getattr(self, key) for key in RUNTIME_KEYS if key in self._given}
        requested = {key: getattr(self, key) for key in WEIGHT_KEYS if key in self._given}
        if self.quantize_head:
            requested["quantize_head"] = True
        return {**changes, "requested_weights": requested} if requested else changes

    def check_requested(self) -> None:
        """Raises ConfigError if `from_pretrained` was asked for other weights than the checkpoint holds."""
        requested: dict[str, Any] = self.__dict__.pop("requested_weights", {})
        different = {key: value for key, value in requested.items() if value != getattr(self, key)}
        if different:
            given = ", ".join(f"{key}={value}" for key, value in different.items())
            stored = ", ".join(f"{key}={getattr(self, key)}" for key in different)
            raise ConfigError(
                f"asked for {given}, but this checkpoint holds packed weights with {stored}. Only "
                f"{', '.join(RUNTIME_KEYS)} can change while loading; quantize the float model again for other weights."
            )
        try:
            self.scheme  # noqa: B018  (a changed value may make an impossible scheme)
        except SchemeError as error:
            raise ConfigError(f"together with the checkpoint's own config: {error}") from None

    def check_ready(self) -> None:
        """Raises CalibrationError if a float model cannot be quantized with this config for want of text."""
        if self.needs_calibration and self.calibration is None:
            what = f"method={self.method!r}" if self.method != RTN else "bits_per_weight"
            raise CalibrationError(
                f"{what} looks at text before it chooses codes, and none was given. Give calibration=: a text file "
                "(.txt, or .jsonl with a field 'text'), a dataset on the Hub, 'curriculum', texts, or token ids "
                "int64 [N, T]."
            )

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """`dict(config)` gives the stored keys."""
        yield from self.to_dict().items()

    def __repr__(self) -> str:
        shown = ("w_symmetric", "a_symmetric", "kv_symmetric", "kv_rotate_keys", "paper_exact", *OTHER_KEYS)
        defaults = QllmConfig()
        different = [key for key in shown if getattr(self, key) != getattr(defaults, key)]
        options = "".join(f", {key}={getattr(self, key)!r}" for key in different)
        return f"QllmConfig({self.scheme}{options})"


def _check_others(others: dict[str, Any]) -> None:
    others_left = {key: value for key, value in others.items() if key not in ("quant_method", "format")}
    if others_left:
        key = next(iter(others_left))
        allowed = (*SCHEME_KEYS, *OTHER_KEYS, *TRANSIENT_KEYS)
        raise ConfigError(
            f"unknown key {key!r} in QllmConfig.{did_you_mean(key, allowed, ALIASES)} Allowed: {', '.join(allowed)}."
        )
    if others.get("quant_method", QUANT_METHOD) != QUANT_METHOD:
        raise ConfigError(f"quant_method={others['quant_method']!r}: QllmConfig reads {QUANT_METHOD!r} only.")
    stored = others.get("format", FORMAT)
    if not isinstance(stored, int) or isinstance(stored, bool) or stored < 1:
        raise CheckpointError(f"format={stored!r} is no format number. Is this config.json damaged?")
    if stored > FORMAT:
        raise CheckpointError(
            f"this checkpoint has format {stored}, this version of qllm_hf reads up to {FORMAT}. "
            "Run: pip install --upgrade qllm-hf"
        )


def _budget(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 2 <= value <= 16):
        raise ConfigError(f"bits_per_weight={value!r}: give a number from 2 to 16.")
    return value


def _patterns(value: Any, option: str = "modules_to_not_convert") -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple | set) or not all(isinstance(pattern, str) for pattern in value):
        raise ConfigError(f"{option}={value!r}: give a list of patterns of module names, such as ['*.down_proj'].")
    return list(value)


def _overrides(value: Any) -> dict[str, str] | None:
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"overrides={value!r}: give a mapping such as {{'*.down_proj': 'W8'}}.")
    parsed = {}
    for pattern, text in value.items():
        scheme = Scheme.parse(text)
        if scheme.kv != FLOAT_BITS:
            raise ConfigError(
                f"overrides[{pattern!r}]={text!r}: KV bits belong to the whole model, not to a module. "
                f"Give kv={scheme.kv} beside overrides."
            )
        canonical = str(scheme)
        if Scheme.names_weight_group(text) and not Scheme.names_weight_group(canonical):
            canonical = canonical.replace(f"W{scheme.w}", f"W{scheme.w}g{scheme.w_group_size}")
        parsed[str(pattern)] = canonical
    return parsed
