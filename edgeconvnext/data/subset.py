"""Choosing images from a list, without chance: the same list gives the same choice on every machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def spread(total: int, count: int, labels: Sequence[int] | None = None) -> list[int]:
    """Choose `count` of `total` positions, in ascending order: evenly over the list, or evenly over each class.

    With labels every class gives the same number of images, as far as it has them; where the division leaves a rest,
    the classes that give one more are themselves evenly spread.
    """
    if labels is None:
        return _even(range(total), count)
    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    shares = _shares({label: len(indices) for label, indices in sorted(members.items())}, count)
    return sorted(index for label, share in shares.items() for index in _even(members[label], share))


def _shares(sizes: dict[int, int], count: int) -> dict[int, int]:
    """Divide `count` over classes of these sizes as evenly as the sizes allow."""
    shares = dict.fromkeys(sizes, 0)
    missing = min(count, sum(sizes.values()))
    while missing:
        free = [label for label in sizes if shares[label] < sizes[label]]
        each = missing // len(free)
        if each == 0:
            for label in _even(free, missing):
                shares[label] += 1
            return shares
        for label in free:
            given = min(each, sizes[label] - shares[label])
            shares[label] += given
            missing -= given
    return shares


def _even(items: Sequence[int], count: int) -> list[int]:
    """Take `count` items at equal distances: 3 of 0..9 are 1, 5, 8 (the middles of three equal parts)."""
    return [items[(2 * step + 1) * len(items) // (2 * count)] for step in range(count)]
