"""Where tests find photographs and trained weights. Only tests marked `data` may use what is not in the repository."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loopback import server, ssh_config  # noqa: F401  fixtures
from micro import write_micro
from PIL import Image
from short_turns import DURATIONS_S

from edgeconvnext import memory, progress
from edgeconvnext.evaluation import timing as interleaved

# Triton's interpreter runs kernels on a CPU, one program after the other, with a GPU's arithmetic. Read when triton is imported.
os.environ["TRITON_INTERPRET"] = "1"

_CHECKOUT = Path(__file__).resolve().parent.parent
_LONGEST_FILES = (
    *("test_readme.py", "test_pipeline.py", "test_larger_module.py", "test_remote.py", "test_received_runs.py"),
    *(
        "test_coreml.py",
        "test_placement_search.py",
        "test_reconstruct.py",
        "test_hostile_boards.py",
        "test_training.py",
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first: where files are shared out to processes, none is left alone with one at the end."""
    rank = {name: number for number, name in enumerate(_LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Folder that holds imagenette2-160 and imagenet_1k_subset."""
    root = Path(os.environ.get("EDGECONVNEXT_DATA") or _CHECKOUT.parent / "shared" / "data")
    if not (root / "imagenette2-160").is_dir():
        pytest.skip(f"no imagenette2-160 under {root}: set EDGECONVNEXT_DATA to the folder that holds it")
    return root.resolve()


@pytest.fixture(scope="session")
def atto_weights() -> Path:
    """ConvNeXt-Atto trained on Imagenette, facebookresearch layout, with its JSON beside it."""
    root = os.environ.get("EDGECONVNEXT_DATA")
    shared = Path(root).resolve().parent if root else _CHECKOUT.parent / "shared"
    path = shared / "weights" / "convnext_atto_imagenette.pth"
    if not path.is_file():
        pytest.skip(f"no {path.name} in a weights folder beside the data folder ({path.parent})")
    return path


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of the network of `micro.py`, for tests that assert no accuracy."""
    return str(write_micro(tmp_path_factory.mktemp("micro") / "micro.safetensors"))


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of two classes, 12 photographs each: crops of the two pictures that travel with scikit-learn."""
    from sklearn.datasets import load_sample_images

    root = tmp_path_factory.mktemp("photographs")
    samples = load_sample_images()
    for name, pixels in zip(("temple", "flower"), samples.images, strict=True):
        (root / name).mkdir()
        for number, crop in enumerate(photo_crops(pixels, 12)):
            Image.fromarray(crop).save(root / name / f"{name}_{number:02d}.jpg", quality=92)
    return root


def photo_crops(pixels: np.ndarray, count: int) -> list[np.ndarray]:
    """Cut `count` overlapping pieces of 160x200 from a photograph, (H, W, 3), walking over it row by row."""
    height, width = pixels.shape[:2]
    columns = 4
    rows = -(-count // columns)
    tops = np.linspace(0, height - 160, rows).astype(int)
    lefts = np.linspace(0, width - 200, columns).astype(int)
    return [pixels[top : top + 160, left : left + 200] for top in tops for left in lefts][:count]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if sys.platform != "linux" or os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_reaches_children() -> None:
    """A shell starts background jobs with Ctrl-C ignored, and children inherit that; with a handler here they do not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _memory_stays_taken() -> Iterator[None]:
    """A process of many exports would look through torch's million objects a thousand times: 12 % of the time of three files."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "WORTH_COLLECTING_MIB", float("inf"))
        yield


@pytest.fixture(autouse=True, scope="session")
def _torchlib_is_translated_once() -> None:
    """torch's exporter has onnxscript translate its 545 functions for every file, in 0.4 s, with the same result."""
    from torch.onnx._internal import _lazy_import

    apis = _lazy_import.onnxscript_apis
    apis.get_torchlib_ops = functools.cache(lambda: importlib.import_module(apis._name).get_torchlib_ops())


@pytest.fixture(autouse=True, scope="session")
def _short_turns() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # A test that waits for a busy machine writes no line of progress between what it looks for.
        patch.setattr(progress, "LINE_SECONDS", 3600.0)
        for name, seconds in DURATIONS_S.items():
            patch.setattr(interleaved, name, seconds)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests: what a test finds in ~/.cache must not decide whether it passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "home"))
        yield
