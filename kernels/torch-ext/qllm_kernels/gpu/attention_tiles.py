"""How attention reads a row of keys or values: cut into parts, each part a tile of words that holds several planes.

    planar      a part is a block of 128 codes (8 bits: a group), a plane of it is the same bits of all its words
    gathered    a part is what one group has of one block, each code is fetched by itself: slow, but takes everything

Planes are counted through all parts of a row. Lane i of a plane is code `first_code + i * step`.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton

_LEAST_LANES = 16  # tensor cores multiply no fewer


@dataclass(frozen=True)  # Triton takes a NamedTuple for a tuple
class Rows:
    """What rows of keys or values hold: `dim` codes, `group` of them to a scale; and how they are read."""

    dim: int
    bits: int
    group: int
    symmetric: bool
    planar: bool


@triton.constexpr_function
def groups(rows):
    """Groups of a row."""
    return -(-rows.dim // rows.group)


@triton.constexpr_function
def cuts(rows):
    """Where parts begin, and where the last one ends."""
    starts = set(range(0, rows.dim, rows.group)) if not rows.planar or rows.bits == 8 else set()
    if not rows.planar or rows.bits < 8:
        starts |= set(range(0, rows.dim, 128))
    return (*sorted(starts), rows.dim)


@triton.constexpr_function
def parts(rows):
    """Parts of a row."""
    return len(cuts(rows)) - 1


@triton.constexpr_function
def part_start(rows, part):
    """The first code of a part."""
    return cuts(rows)[part]


@triton.constexpr_function
def block_length(rows, part):
    """Codes of the block of 128, or fewer, in which a part lies."""
    return min(128, rows.dim - part_start(rows, part) // 128 * 128)


@triton.constexpr_function
def planes_of_part(rows):
    """Planes of each part."""
    return (8 if rows.bits < 4 else 4 if rows.bits < 8 else 2) if rows.planar else 1


@triton.constexpr_function
def planes(rows):
    """Planes of a row."""
    return parts(rows) * planes_of_part(rows)


@triton.constexpr_function
def part_of(rows, plane):
    """The part of a plane."""
    return plane // planes_of_part(rows)


@triton.constexpr_function
def place_of(rows, plane):
    """The number of a plane among those of its part."""
    return plane % planes_of_part(rows)


@triton.constexpr_function
def used_lanes(rows, part):
    """Lanes of a part that hold words of the widest field (gathered: codes)."""
    start, stop = cuts(rows)[part : part + 2]
    return -(-(stop - start) // planes_of_part(rows))


@triton.constexpr_function
def lanes(rows, part):
    """Lanes of a part: a power of two."""
    return max(16, 1 << (used_lanes(rows, part) - 1).bit_length())


@triton.constexpr_function
def step(rows):
    """From the code of one lane to that of the next: a word has two codes of 8 bits side by side."""
    return 2 if rows.planar and rows.bits == 8 else 1


@triton.constexpr_function
def first_code(rows, plane):
    """The code of lane 0 of a plane."""
    part = part_of(rows, plane)
    apart = 1 if rows.bits == 8 else used_lanes(rows, part)
    return part_start(rows, part) + place_of(rows, plane) * apart


@triton.constexpr_function
def group_of(rows, plane):
    """The group of a plane."""
    return first_code(rows, plane) // rows.group


@triton.constexpr_function
def opens_group(rows, plane):
    """Whether a plane is the first of its group."""
    return plane == 0 or group_of(rows, plane - 1) != group_of(rows, plane)


@triton.constexpr_function
def closes_group(rows, plane):
    """Whether a plane is the last of its group."""
    return plane + 1 == planes(rows) or opens_group(rows, plane + 1)


def is_planar(dim: int, bits: int, group: int) -> bool:
    """Whether rows can be read by planes: each of them lies in one group, and no tile is mostly empty."""
    if bits == 8:
        return group % 2 == 0 and group >= _LEAST_LANES
    rows = Rows(dim, bits, group, False, True)
    for part in range(parts(rows)):
        start, stop = cuts(rows)[part : part + 2]
        words = used_lanes(rows, part)
        if 2 * words < _LEAST_LANES or (bits not in (2, 4) and (stop - start) % 32):
            return False
        for first in range(start, stop, words):
            if first // group != (min(first + words, stop) - 1) // group:
                return False
    return True
