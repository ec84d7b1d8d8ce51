"""Several processes under torchrun train what one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Without what is drawn for each process: mixing and skipped blocks.
OPTIONS = (
    "train", "digits", "--data", "digits", "--eval", "digits_test", "--preset", "small-data", "--sizes", "32", "--epochs", "1",
    "--warm-up-epochs", "0", "--batch-size", "40", "--optimizer", "sgd", "--mixup", "0", "--cutmix", "0", "--drop-path", "0",
    "--precision", "fp32",
)  # fmt: skip


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch was built without gloo")
@pytest.mark.exhaustive
def test_two_processes_train_the_network_of_one(tmp_path: Path) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgeconvnext")
    two = run(*torchrun, *OPTIONS, "--output", str(tmp_path / "two"))
    one = run("edgeconvnext", *OPTIONS, "--output", str(tmp_path / "one"))
    assert two.stdout.count("model: ") == 1 and two.stderr.count("epoch 1 of 1") == 1  # only the first process speaks
    first, second = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("one", "two"))
    assert first["steps"] == second["steps"] == 10
    for name, tensor in first["module"].items():
        # Means over halves are added in another order, and ten steps carry the difference on.
        torch.testing.assert_close(second["module"][name], tensor, rtol=1e-3, atol=1e-5)
    assert "of 599 images" in one.stdout and "of 599 images" in two.stdout
    # What two processes began, one goes on with.
    again = run("edgeconvnext", *OPTIONS, "--output", str(tmp_path / "two"))
    assert "model: " in again.stdout
