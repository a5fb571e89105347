"""Numbers -> codes -> numbers, as weights and as rows of a cache: what comes back is next to what went in.

Each element may be off by half a step, and by what rounding the scale to its dtype cuts off at the end of the range. In
float16 a scale of less than 6e-5 is denormal and has few digits; that is part of its rounding.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from qllm_hf import native, on_gpu
from qllm_hf.kv_rows import RowFormat
from qllm_hf.packed import PackedTensor, decode_reference, encode_reference
from qllm_hf.rotation import rotate, rotation_size
from qllm_hf.scheme import Spec
from qllm_hf.uniform import fake_quantize, group

from .outcome import Outcome, at, compare, levels
from .values import DTYPES, VALUES, draw

LENGTHS = (1, 2, 7, 31, 32, 33, 40, 64, 72, 80, 96, 127, 128, 129, 172, 256, 300)
HEAD_DIMS = (1, 3, 8, 40, 64, 72, 80, 96, 128, 256)


def half_a_step(x: Tensor, scale: Tensor, spec: Spec, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """How far each element of x [..., K] may move, float64, and whether its group is spoiled; scale [..., G]."""
    stored, result = torch.finfo(scale.dtype), torch.finfo(dtype)
    groups = group(x.double(), spec)
    step = scale.double().unsqueeze(-1)
    steps, largest = 2**spec.bits - 1, groups.abs().amax(-1, keepdim=True)
    of_scale = torch.maximum(step * stored.eps / 2, torch.tensor(stored.smallest_normal * stored.eps / 2))
    # the zero point is a quotient by the stored scale, rounded once; codes of float16 end half a step below its largest
    bound = step / 2 + steps * of_scale + largest * (2 * result.eps + 4e-7) + 1e-5 / steps * of_scale.sign()
    bound = bound + result.smallest_normal * result.eps
    if scale.dtype == torch.float16:  # no code is used that means more than the largest: the one before it is
        bound = torch.where(groups.abs() + step > stored.max, bound + step / 2, bound)
    spoiled = ~step.isfinite()
    shape = groups.shape
    flat = [part.expand(shape).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]] for part in (bound, spoiled)]
    return flat[0], flat[1]


def weights(source: random.Random) -> Iterator[Outcome]:
    """Weights packed in one dtype, with scales of another, and unpacked to a third."""
    length = source.choice(LENGTHS)
    spec = Spec(source.randint(2, 8), source.choice((-1, 1, 3, 8, 32, 64, 100, 128, 300)), source.random() < 0.4)
    dtype, scale_dtype, to = (source.choice(DTYPES) for _ in range(3))
    x = draw(source.choice(list(VALUES)), (source.randint(1, 5), length), dtype)
    made = encode_reference(x, spec, scale_dtype)
    exact, size = decode_reference(made._replace(scale=made.scale.double())), torch.finfo(to)
    yield _near("torch", exact, x, made, spec)
    if dtype == scale_dtype:
        simulated, meant = fake_quantize(x, spec), decode_reference(made, dtype)
        whole = _by_element(made, x.shape).isfinite()
        same = _same(simulated[whole], meant[whole]) and not bool(
            (simulated.isfinite() | meant.isfinite())[~whole].any()
        )
        yield Outcome("simulated", 0, 0, "" if same else "other numbers than packed ones")
    rounding = exact.abs() * (size.eps / 2 + 2**-24) + size.smallest_normal * size.eps
    spoiled = ~_by_element(made, x.shape).isfinite()
    yield compare("torch", decode_reference(made, to), exact, rounding, exact.abs(), spoiled)
    for level in levels():
        with at(level):
            packed = PackedTensor.encode(x, spec, scale_dtype)
            same = all(
                _same(a, b) for a, b in zip(packed[:3], made[:3], strict=True) if a is not None and b is not None
            )
            yield Outcome(f"cpu {level}", 0, 0, "" if same else "other codes than torch")
            found = native.decode(*made, to)
            if found is not None:
                yield compare(f"cpu {level}", found, exact, rounding, exact.abs(), spoiled)
    if "cpu" in on_gpu.DEVICES:
        found_codes = on_gpu.encode(x, spec, scale_dtype)
        if found_codes is not None:
            whole = made.scale.isfinite()
            same = _same(found_codes[1][whole], made.scale[whole]) and (
                not bool(whole.all()) or _same(found_codes[0], made.words)
            )
            yield Outcome("interpreter", 0, 0, "" if same else "other codes than torch")
        found = on_gpu.decode(*made, to)
        if found is not None:
            yield compare("interpreter", found, exact, rounding, exact.abs(), spoiled)


def rows(source: random.Random) -> Iterator[Outcome]:
    """Keys and values of all head dims as rows of a cache, turned or not."""
    length, dtype = source.choice(HEAD_DIMS), source.choice(DTYPES)
    sizes = [size for size in range(1, length + 1) if length % size == 0]
    spec = Spec(source.randint(2, 8), source.choice((*sizes, -1, 5)), source.random() < 0.4)
    rotated = rotation_size(length) > 1 and source.random() < 0.3
    shape = (source.randint(1, 2), source.randint(1, 3), source.randint(1, 5), length)
    x = draw(source.choice(list(VALUES)), shape, dtype)
    form = RowFormat(spec, length, dtype, rotated)
    made = form.encode_reference(x)
    stored, turned = form.as_stored(), rotate(x) if rotated else x
    packed = stored.split(made)
    exact = decode_reference(packed._replace(scale=packed.scale.double()))
    yield _near("torch", exact, turned, packed, spec)
    for level in levels():
        with at(level):
            new = form.encode(x)
            whole = packed.scale.isfinite().all(-1)  # what stands for a number that is none may be anything
            same = _same(new[whole], made[whole]) and _same(stored.split(new).scale.isfinite(), packed.scale.isfinite())
            yield Outcome(f"cpu {level}", 0, 0, "" if same else "other rows than torch")
            # to turn them back is a product of matrices, which rounds as it likes
            same = _same(stored.decode(new)[whole], stored.decode_reference(made)[whole])
            hidden = bool(form.decode(new)[~whole].isfinite().all(-1).any())
            yield Outcome(
                f"cpu {level}", 0, 0, "other numbers than torch" if not same else "hides NaN" if hidden else ""
            )


def _near(name: str, found: Tensor, x: Tensor, packed: PackedTensor, spec: Spec) -> Outcome:
    bound, spoiled = half_a_step(x, packed.scale, spec, packed.scale.dtype)
    lost = ~x.isfinite() & ~spoiled
    if bool(lost.any()):
        return Outcome(name, 0, 0, "a number that is not finite has a finite scale")
    if bool((spoiled & ~found.isnan()).any()):
        return Outcome(name, 0, 0, "an infinity, which attention may drop, where NaN should show")
    # a range that its dtype cannot express spoils its group as well: it shows
    return compare(name, found, x.double(), bound, x.double().abs().amax(), spoiled)


def _by_element(packed: PackedTensor, shape: torch.Size) -> Tensor:
    size = packed.spec.group_size if packed.spec.group_size > 0 else shape[-1]
    return packed.scale[..., torch.arange(shape[-1]) // size]


def _same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, but for which NaN it is and the sign of zero."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
