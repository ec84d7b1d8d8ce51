"""Sensitivity of layers, budgets, norms that may go, placements: the only part that quantises, exports and measures in a loop.

Called, `edgeconvnext.search(...)` searches a placement.
"""

from __future__ import annotations

from edgeconvnext.command_package import make_callable

make_callable(__name__)
