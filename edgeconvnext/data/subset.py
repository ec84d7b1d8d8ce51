"""Choosing images from a list, without chance: the same list gives the same choice on every machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeconvnext.data.image_set import ImageSet


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


def split_held_out(image_set: ImageSet) -> tuple[list[int], list[int]]:
    """Split a set into the indices to fit on and the third held out from fitting, both ascending.

    Every third image is held out, counted class by class, so that both parts see every class that has enough images. A
    set of one image cannot be split: it is then in both parts.
    """
    order = list(range(len(image_set)))
    if len(order) == 1:
        return order, order
    if image_set.labels is not None:
        order.sort(key=image_set.labels.__getitem__)
    held_out = set(order[1::3])
    return [index for index in range(len(order)) if index not in held_out], sorted(held_out)


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
