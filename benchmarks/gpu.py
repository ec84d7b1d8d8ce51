"""What the Triton kernels do on a GPU: codes against the simulation, times against float forms, accuracy on photographs.

    PYTHONPATH=. python -m benchmarks.gpu [--pack .gpu] [--output benchmarks/results] [--seconds 1] [--batch 1 8 32 128]

Runs from a checkout with torch, Triton, numpy, safetensors and Pillow, and reads what `benchmarks.gpu_pack` wrote. Results are
written after each network: gpu.json (codes, accuracy), gpu.csv (times). A network whose codes are not the simulation's has
no times, and the exit code is 3.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgeconvnext.backends.triton.gpu import BATCHES, describe_gpu, describe_versions, require_gpu
from edgeconvnext.backends.triton.planned import PlannedNetwork
from edgeconvnext.errors import GATE_MISSED_EXIT_CODE, EdgeConvNextError
from edgeconvnext.sqnr import logit_sqnr_db

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier, Lock

    from edgeconvnext.backends.triton.network import TritonNetwork
    from edgeconvnext.backends.triton.timing import TimedForm

HERE = Path(__file__).resolve().parent
PACK = HERE.parent / ".gpu"
SETTINGS, NETWORK, PLAN, PHOTOGRAPHS = "network.json", "floats.safetensors", "plan.safetensors", "photographs.npz"
EVALUATED_BATCH = 64
LONGEST_PREPARATION_S = 480
_PREPARED: Barrier
_TURN: Lock


@dataclass(frozen=True)
class Settings:
    """What a packed network is: float_type of the stream, mean and std of its input, and the config as `config_json` writes it."""

    name: str
    config: str
    float_type: str
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Photographs:
    """Pictures at the network's input size and what other forms answered. classes: (N,) of the model; logits: (N, num_classes)."""

    jpegs: list[bytes]
    classes: np.ndarray
    fp32: np.ndarray
    simulated: np.ndarray


@dataclass(frozen=True)
class Accuracy:
    """On the packed photographs, per cent and dB. agreement, sqnr_db: with FP32; fidelity_db: to the float32 simulated graph."""

    images: int
    fp32_top1: float
    top1: float
    agreement: float
    sqnr_db: float
    fidelity_db: float


def main() -> None:
    arguments = _arguments()
    folders = sorted(path.parent for path in arguments.pack.glob(f"*/{SETTINGS}"))
    if not folders:
        sys.exit(f"{arguments.pack} holds no packed network; make it with: python -m benchmarks.gpu_pack --run RUN")
    try:
        device = require_gpu()
    except EdgeConvNextError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    right = measure(folders, device, arguments.output, arguments.batch, arguments.seconds)
    sys.exit(0 if right else GATE_MISSED_EXIT_CODE)


def measure(folders: list[Path], device: torch.device, output: Path, batches: list[int], seconds: float) -> bool:
    """Check and judge all networks, and time them; return whether all codes were the simulation's.

    Each network's check, and the float forms of each network and batch, are prepared side by side in processes of their own:
    nearly all of that is compiling on the CPU. Times are taken when all are done, one after the other.
    """
    context = multiprocessing.get_context("spawn")
    processes = len(folders) * (1 + len(batches))
    prepared, turn = context.Barrier(processes), context.Lock()
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(2, (os.cpu_count() or 1) // processes)))
    with ProcessPoolExecutor(processes, context, _join, (prepared, turn)) as pool:
        checks = {folder: pool.submit(_check, folder, device) for folder in folders}
        times = {(f, batch): pool.submit(_time, f, device, batch, seconds) for f in folders for batch in batches}
        return collect(checks, times, output)


def collect(
    checks: Mapping[Path, Future[dict[str, Any]]],
    times: Mapping[tuple[Path, int], Future[list[TimedForm]]],
    output: Path,
) -> bool:
    """Write what the processes found, as it comes; return whether all codes were the simulation's.

    checks: of each network's folder. times: of each folder and batch; those of a network with other codes are left out.
    """
    from edgeconvnext.backends.triton.timing import write_csv

    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"device": describe_gpu(), "versions": describe_versions(), "networks": {}}
    right = []
    for folder, check in checks.items():
        found = check.result()
        if found.pop("right"):
            right.append(folder)
        results["networks"][read_settings(folder).name] = found
        (output / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({folder.name: found}), flush=True)
    pending = [timed for (folder, _), timed in times.items() if folder in right]
    for _ in as_completed(pending):
        well = [timed for timed in pending if timed.done() and timed.exception() is None]
        write_csv(output / "gpu.csv", [form for timed in well for form in timed.result()])
    for timed in pending:
        timed.result()  # raises what went wrong, after all that went well is written
    return len(right) == len(checks)


def _join(prepared: Barrier, turn: Lock) -> None:
    global _PREPARED, _TURN
    _PREPARED, _TURN = prepared, turn


@contextmanager
def _turn() -> Iterator[None]:
    """Wait until every process has prepared what it can, then for the GPU."""
    _PREPARED.wait(LONGEST_PREPARATION_S)
    with _TURN:
        yield


def _check(folder: Path, device: torch.device) -> dict[str, Any]:
    """Return how the codes of a packed network compare, whether that is allowed, and its accuracy where it has photographs."""
    from edgeconvnext.backends.triton.network import TritonNetwork
    from edgeconvnext.backends.triton.timing import check_on

    try:
        planned = unpack(folder)
        int8 = TritonNetwork(planned.network, planned.plan, planned.float_type, device)
        differences = check_on(device, planned, int8)
        found: dict[str, Any] = {
            "right": all(difference.is_allowed for difference in differences),
            "codes": [asdict(difference) for difference in differences],
        }
        if (folder / PHOTOGRAPHS).is_file():
            found["accuracy"] = asdict(accuracy(int8, read_settings(folder), read_photographs(folder), device))
    except BaseException:
        _PREPARED.abort()
        raise
    with suppress(BrokenBarrierError):  # what was found holds, whatever became of the others
        _PREPARED.wait(LONGEST_PREPARATION_S)
    return found


def _time(folder: Path, device: torch.device, batch: int, seconds: float) -> list[TimedForm]:
    from edgeconvnext.backends.triton.network import TritonNetwork
    from edgeconvnext.backends.triton.timing import time_batch

    try:
        planned = unpack(folder)
        int8 = TritonNetwork(planned.network, planned.plan, planned.float_type, device)
        return time_batch(planned, int8, device, batch, seconds, _turn())
    except BaseException:
        _PREPARED.abort()
        raise


def unpack(folder: Path) -> PlannedNetwork:
    """Read a packed network. Floats that codes stand for are new random ones: the float forms are timed, not judged."""
    from safetensors.torch import load_file

    from edgeconvnext.model.build import config_from_json
    from edgeconvnext.model.convnext.network import ConvNeXt, ConvNeXtConfig
    from edgeconvnext.quantization.plan_storage import load_plan

    settings = read_settings(folder)
    config = config_from_json(settings.config)
    assert isinstance(config, ConvNeXtConfig)
    torch.manual_seed(0)
    folded = ConvNeXt(config).eval()
    missing = folded.load_state_dict(load_file(folder / NETWORK), strict=False).missing_keys
    plan, network = load_plan(folder / PLAN, folded)
    lost = {name.rpartition(".")[0] for name in missing} - set(plan.weights)
    if lost:
        raise ValueError(f"{folder} lacks the parameters of {', '.join(sorted(lost))}: pack it again")
    assert isinstance(network, ConvNeXt)
    float_type = getattr(torch, settings.float_type)
    return PlannedNetwork(settings.name, folded, network, plan, float_type, settings.input_size)


def read_settings(folder: Path) -> Settings:
    values = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def read_photographs(folder: Path) -> Photographs:
    with np.load(folder / PHOTOGRAPHS) as packed:
        ends = np.cumsum(packed["sizes"])
        content = packed["content"].tobytes()
        jpegs = [content[end - size : end] for size, end in zip(packed["sizes"], ends, strict=True)]
        return Photographs(jpegs, packed["classes"], packed["fp32"], packed["simulated"])


def images_of(jpegs: list[bytes], settings: Settings) -> torch.Tensor:
    """Decode and normalise pictures that have the input's size: (N, C, H, W), float32."""
    from PIL import Image

    from edgeconvnext.data.preprocess import Preprocess

    pixels = np.stack([np.asarray(Image.open(io.BytesIO(jpeg), formats=("JPEG",)).convert("RGB")) for jpeg in jpegs])
    preprocess = Preprocess(input_size=settings.input_size, mean=settings.mean, std=settings.std)
    return torch.from_numpy(preprocess.normalize(pixels)).permute(0, 3, 1, 2).contiguous()


def accuracy(int8: TritonNetwork, settings: Settings, photographs: Photographs, device: torch.device) -> Accuracy:
    """Classify all photographs with the kernels."""
    parts = []
    for start in range(0, len(photographs.jpegs), EVALUATED_BATCH):
        images = images_of(photographs.jpegs[start : start + EVALUATED_BATCH], settings)
        parts.append(int8(images.to(device)).cpu().numpy())
    logits = np.concatenate(parts)
    answers, fp32 = logits.argmax(axis=1), photographs.fp32.argmax(axis=1)
    return Accuracy(
        len(logits),
        100 * float((fp32 == photographs.classes).mean()),
        100 * float((answers == photographs.classes).mean()),
        100 * float((answers == fp32).mean()),
        logit_sqnr_db(photographs.fp32, logits),
        logit_sqnr_db(photographs.simulated, logits),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, default=PACK)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--seconds", type=float, default=1.0, help="measured time of each form at each batch")
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    return parser.parse_args()


if __name__ == "__main__":
    main()
