"""95 % intervals of shares of images, and of the difference that two networks make on the same images."""

from __future__ import annotations

import math

from edgeconvnext.schema.report import Interval

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (E. B. Wilson, 1927, J. Am. Stat. Assoc. 22:209).

    It stays inside 0..1 and has width even at 0 or n hits: 10 of 10 gives 0.722..1.
    """
    share = hits / n
    centre = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def drop_interval(lost: int, gained: int, n: int) -> Interval:
    """Return (lost - gained) / n in points with its paired 95 % interval.

    10 lost and 2 gained of 1000: 0.80, from 0.07 to 1.53.
    """
    only_reference, only_quantized = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    centre = only_reference - only_quantized
    half = Z95 * math.sqrt((only_reference + only_quantized - centre**2) / (n + 2))
    value = (lost - gained) / n
    return Interval(
        value=100 * value,
        low=100 * max(-1.0, min(value, centre - half)),
        high=100 * min(1.0, max(value, centre + half)),
    )
