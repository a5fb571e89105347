"""Scheme: how many bits for weights (W), activations (A) and KV cache (KV), as one value and one string.

The strings are the paper's: `W4`, `W4A8`, `KV4`, `W4KV8`, `W8A8KV4`, `FP16`. A group size that is not
the default 128 follows its number as in the field's file names: `W4g32KV4g64`, and `W4g-1` is per channel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import SchemeError
from .layout import group_count, row_words

FLOAT_BITS = 16
ALLOWED_BITS = (2, 3, 4, 5, 6, 7, 8)
DEFAULT_GROUP_SIZE = 128
PER_ROW = -1
"""One group for a whole row: per output channel for weights, per token for activations."""
PER_TENSOR = 0
"""One group for a whole matrix (of each expert, where there are several)."""

_PATTERN = re.compile(r"(?:W(\d+)(?:G(-?\d+))?)?(?:A(\d+))?(?:KV(\d+)(?:G(-?\d+))?)?", re.IGNORECASE)
_HINT = "Write W<bits>, A<bits>, KV<bits> in this order, bits from 2 to 8, such as W4, W4A8, KV4, W4g32KV8, or FP16."


@dataclass(frozen=True)
class Spec:
    """How one tensor is quantized.

    `group_size` counts elements along the last dimension; -1 makes one group of each row, 0 one of the
    whole matrix. `paper_exact` keeps the published arithmetic bit for bit (see `qllm_hf.uniform`).
    """

    bits: int
    group_size: int = DEFAULT_GROUP_SIZE
    symmetric: bool = False
    paper_exact: bool = False

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in ALLOWED_BITS:
            raise SchemeError(f"bits={self.bits!r}: quantized tensors take 2 to 8 bits.")
        if isinstance(self.group_size, bool) or not isinstance(self.group_size, int) or self.group_size < PER_ROW:
            raise SchemeError(
                f"group_size={self.group_size!r}: give a positive number of elements, "
                "-1 for one group per row, or 0 for one group per tensor."
            )

    def row_bits(self, length: int, scale_bits: int = 16) -> float:
        """Stored bits of a row of `length` elements: packed codes, scales, and one byte per zero point."""
        groups = group_count(length, self.group_size) if self.group_size != PER_TENSOR else 0
        return row_words(length, self.bits) * 16 + groups * (scale_bits + (0 if self.symmetric else 8))

    def bits_per_element(self, length: int, scale_bits: int = 16) -> float:
        """Stored bits per element of a row of `length` elements, scales and zero points included.

        >>> Spec(4, 128).bits_per_element(4096)
        4.1875
        """
        return self.row_bits(length, scale_bits) / length


@dataclass(frozen=True)
class Scheme:
    """Bits of weights, activations and KV cache, and how each is grouped. 16 bits mean: stays in floating point.

    Attributes:
        w, a, kv: bits, 2 to 8, or 16. Activations (a) are quantized only together with weights, as in the paper.
        w_group_size: elements per group along in_features; -1 per output channel, 0 per tensor.
        kv_group_size: elements per group along head_dim; the largest divisor of head_dim not above it is used.
        w_symmetric, a_symmetric, kv_symmetric: no zero point. The study's code is asymmetric everywhere; its text
            says symmetric activations.
        kv_rotate_keys: keys are turned by an orthonormal Hadamard matrix before they are quantized, and queries with
            them (see `qllm_hf.rotation`): for models with a few channels of keys that are much larger than the others.
        paper_exact: the published arithmetic bit for bit, with its corner cases (see `qllm_hf.uniform`).

    Raises:
        SchemeError: bits outside 2..8 and 16, a < 16 with w = 16, a group size that cannot be, or rotated keys with
            `paper_exact`.

    Source: arXiv 2402.18158 section 2 (naming), code of Qllm-Eval (defaults).

    >>> str(Scheme(w=4, kv=8))
    'W4KV8'
    >>> Scheme.parse("w4a16kv16") == Scheme(w=4)
    True
    """

    w: int = FLOAT_BITS
    a: int = FLOAT_BITS
    kv: int = FLOAT_BITS
    w_group_size: int = DEFAULT_GROUP_SIZE
    kv_group_size: int = DEFAULT_GROUP_SIZE
    w_symmetric: bool = False
    a_symmetric: bool = False
    kv_symmetric: bool = False
    kv_rotate_keys: bool = False
    paper_exact: bool = False

    def __post_init__(self) -> None:
        for name in ("w", "a", "kv"):
            bits = getattr(self, name)
            if type(bits) is not int or bits not in (*ALLOWED_BITS, FLOAT_BITS):
                raise SchemeError(
                    f"{name}={bits!r}: allowed are 2, 3, 4, 5, 6, 7, 8 bits, or 16 to stay in floating point."
                )
        if self.a < FLOAT_BITS and self.w == FLOAT_BITS:
            raise SchemeError(
                f"a={self.a} with w=16: activations are quantized only together with weights. "
                f"Give w as well, for example W8A{self.a}."
            )
        for name in ("w_symmetric", "a_symmetric", "kv_symmetric", "kv_rotate_keys", "paper_exact"):
            if not isinstance(getattr(self, name), bool):
                raise SchemeError(f"{name}={getattr(self, name)!r}: give True or False.")
        if self.kv_rotate_keys and self.paper_exact:
            raise SchemeError(
                "kv_rotate_keys=True with paper_exact=True: the study turns no keys. Leave one of them out."
            )
        for group_name, group_size in (("w_group_size", self.w_group_size), ("kv_group_size", self.kv_group_size)):
            if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < PER_ROW:
                raise SchemeError(
                    f"{group_name}={group_size!r}: give a positive number of elements, -1 for one group per row"
                    + (", or 0 for one group per tensor." if group_name == "w_group_size" else ".")
                )
        if self.kv_group_size == PER_TENSOR:
            raise SchemeError(
                "kv_group_size=0: keys and values arrive token by token, so a group cannot span the whole tensor. "
                "Give a positive number, or -1 for one group per token and head."
            )

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """The Scheme that a string such as `W4A8KV4`, `w4g32` or `FP16` names.

        Raises:
            SchemeError: the string names no scheme.
        """
        if isinstance(text, Scheme):
            return text
        if not isinstance(text, str):
            raise SchemeError(f"scheme={text!r} is a {type(text).__name__}, not a string. {_HINT}")
        compact = text.strip().replace("_", "").replace(" ", "")
        if compact.upper() in ("FP16", "BF16", "FP32"):
            return cls()
        match = _PATTERN.fullmatch(compact)
        if not compact or match is None:
            raise SchemeError(f"scheme {text!r} is not understood. {_HINT}")
        w, w_group, a, kv, kv_group = (None if part is None else int(part) for part in match.groups())
        try:
            return cls(
                w=FLOAT_BITS if w is None else w,
                a=FLOAT_BITS if a is None else a,
                kv=FLOAT_BITS if kv is None else kv,
                w_group_size=DEFAULT_GROUP_SIZE if w_group is None else w_group,
                kv_group_size=DEFAULT_GROUP_SIZE if kv_group is None else kv_group,
            )
        except SchemeError as error:
            raise SchemeError(f"scheme {text!r}: {error}") from None

    @staticmethod
    def names_weight_group(text: str) -> bool:
        """Whether a scheme string gives the group size of weights itself, be it the default one."""
        match = _PATTERN.fullmatch(text.strip().replace("_", "").replace(" ", ""))
        return match is not None and match[2] is not None

    def __str__(self) -> str:
        def part(letter: str, bits: int, group_size: int = DEFAULT_GROUP_SIZE) -> str:
            if bits == FLOAT_BITS:
                return ""
            return f"{letter}{bits}" + (f"g{group_size}" if group_size != DEFAULT_GROUP_SIZE else "")

        text = part("W", self.w, self.w_group_size) + part("A", self.a) + part("KV", self.kv, self.kv_group_size)
        return text or "FP16"

    @property
    def weight(self) -> Spec | None:
        """How a weight matrix [O, I] is quantized, or None."""
        if self.w == FLOAT_BITS:
            return None
        return Spec(self.w, self.w_group_size, self.w_symmetric, self.paper_exact)

    @property
    def activation(self) -> Spec | None:
        """How the input of a linear layer [..., I] is quantized (per token, dynamically), or None."""
        return None if self.a == FLOAT_BITS else Spec(self.a, PER_ROW, self.a_symmetric, self.paper_exact)

    def kv_spec(self, head_dim: int) -> Spec | None:
        """How keys or values [B, H, T, head_dim] are quantized, or None.

        The group is the largest divisor of `head_dim` that is not above `kv_group_size`, so that groups
        never straddle heads and are all of one size.
        """
        if self.kv == FLOAT_BITS:
            return None
        wanted = head_dim if self.kv_group_size == PER_ROW else min(head_dim, self.kv_group_size)
        group_size = next(size for size in range(wanted, 0, -1) if head_dim % size == 0)
        return Spec(self.kv, group_size, self.kv_symmetric, self.paper_exact)
