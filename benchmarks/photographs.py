"""Where the photographs and the trained network of the benchmarks lie: below EDGECONVNEXT_DATA, or beside this checkout."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(os.environ.get("EDGECONVNEXT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
WEIGHTS = DATA.parent / "weights" / "convnext_atto_imagenette.pth"


def use_photographs() -> None:
    """Let image sets be found by name, also in processes that are started."""
    os.environ.setdefault("EDGECONVNEXT_DATA", str(DATA))
