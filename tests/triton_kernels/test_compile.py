"""What the interpreter runs also compiles for GPUs: machine code on tensor cores, within their shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need Triton: pip install 'edgeconvnext[triton]'")

# CUDA C++ Programming Guide, "Technical specifications per compute capability": KiB of shared memory that a block may have. 8.0
# has 163; what is compiled for it also runs on 8.6 and 8.9, which have 99.
SHARED_KIB = {80: 99, 90: 227}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_a_gpu(capability: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).parent / "compile_kernels.py"
    done = subprocess.run(
        [sys.executable, str(script), str(capability)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {entry["kernel"] for entry in compiled} == {"pwconv1", "pwconv2", "depthwise", "norm", "quantize"}
    for entry in compiled:
        assert entry["machine_code"], entry
        assert entry["shared_bytes"] <= SHARED_KIB[capability] * 1024, entry
        assert entry["tensor_cores"] == entry["kernel"].startswith("pwconv"), entry
