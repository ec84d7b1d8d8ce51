"""What building an engine proves of the file it was built from."""

from __future__ import annotations

from pathlib import Path

from edgeconvnext.backends.base import LAYER_LIST
from edgeconvnext.backends.tensorrt.engine import EngineBuild
from edgeconvnext.schema.report import ExportCheck


def engine_check(build: EngineBuild, folder: Path) -> ExportCheck:
    """Report a build, and write the layers that its parser found to LAYER_LIST."""
    weighted = build.network.weighted()
    (folder / LAYER_LIST).write_text(build.network.as_csv(), encoding="utf-8")
    return ExportCheck(
        name=build.network.runtime.rpartition(" ")[0],
        passed=True,
        result=f"{build.network.runtime} parses and builds it: {len(build.network.layers)} layers ({LAYER_LIST}), "
        f"{sum(layer.quantized for layer in weighted)} of {len(weighted)} convs and linears in INT8, "
        f"{build.size_bytes / 2**20:.1f} MiB in {build.seconds:.1f} s",
    )
