"""Results of two computations whose sums are in another order, where values on the way are rounded to codes."""

TIGHT, LOOSE = 1e-5, 0.02


def same(got, expected):
    return bool((got - expected).abs().max() < TIGHT)


def same_but_for_a_code(got, expected):
    """Whether [B, T, ...] agree, but for a code in one sequence.

    A value on the border of two codes may become the other one, which that token and all after it see: a small part of
    the largest value. Whoever mixes up heads, rows or scales is far off, or off in every sequence.
    """
    off = (got - expected).abs().flatten(1).amax(-1)
    return bool(off.min() < TIGHT and off.max() < LOOSE * expected.abs().max())
