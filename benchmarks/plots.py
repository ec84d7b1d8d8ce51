"""How plots of benchmarks are written: the same CSV gives the same file, and letters stay letters."""

from __future__ import annotations

from types import ModuleType


def pyplot_for(name: str) -> ModuleType:
    """Return matplotlib's pyplot for an SVG; name: what its identifiers are derived from."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none"})
    from matplotlib import pyplot

    return pyplot
