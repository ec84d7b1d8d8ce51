"""Pack quantised networks and photographs for a GPU machine that this package cannot be installed on.

    python -m benchmarks.gpu_pack --run runs/atto-rtx --photographs imagenette_val
    python -m benchmarks.gpu_pack --run runs/tiny-rtx
    PYTHONPATH=. python -m benchmarks.gpu          # there

Each call adds one run to the folder (`.gpu/`, ignored by git): its plan, whose weights are int8 codes, and the few floats that are
no codes. A Tiny takes 29 MB. Photographs are cropped to the input size and re-encoded; the logits beside them are of the pictures
as re-encoded.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu import (
    EVALUATED_BATCH,
    NETWORK,
    PACK,
    PHOTOGRAPHS,
    PLAN,
    SETTINGS,
    Settings,
    images_of,
    read_settings,
)
from edgeconvnext.backends.triton.planned import PlannedNetwork
from edgeconvnext.commands.bench_triton import load_planned_run
from edgeconvnext.data.labels import match_labels
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.errors import EdgeConvNextError, ImageSetError
from edgeconvnext.files import tree_size
from edgeconvnext.model.build import config_json
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.pipeline.stages.network import FOLDED
from edgeconvnext.pipeline.stages.quantization import PLAN as RUN_PLAN
from edgeconvnext.quantization.biases import round_biases
from edgeconvnext.quantization.fake import quantize_activations

QUALITY = 80
LARGEST_PACK = 60 * 2**20
"""Bytes. 64 MiB travel at most, and the checkout is part of it."""


def main() -> None:
    arguments = _arguments()
    try:
        folder = pack(arguments.run, arguments.pack, arguments.photographs)
    except EdgeConvNextError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    size = tree_size(arguments.pack)
    print(f"{folder}: {tree_size(folder) / 2**20:.1f} MiB, all of {arguments.pack}: {size / 2**20:.1f} MiB")
    if size > LARGEST_PACK:
        sys.exit(
            f"{arguments.pack} holds more than {LARGEST_PACK // 2**20} MiB; delete a network of it and send it apart."
        )


def pack(run: Path, into: Path, photographs: str | None) -> Path:
    """Write one network, and photographs where a labelled set is named; return its folder. run: a finished run."""
    planned, model = load_planned_run(run), load_model(run / FOLDED)
    folder = into / run.name
    folder.mkdir(parents=True, exist_ok=True)
    _write_network(planned, model, run, folder)
    if photographs is not None:
        _write_photographs(planned, model, photographs, folder)
    return folder


def _write_network(planned: PlannedNetwork, model: LoadedModel, run: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    coded = {f"{layer}.{name}" for layer in planned.plan.weights for name in ("weight", "bias")}
    floats = {name: value for name, value in planned.folded.state_dict().items() if name not in coded}
    save_file(floats, folder / NETWORK)
    shutil.copyfile(run / RUN_PLAN, folder / PLAN)
    settings = Settings(
        planned.name,
        config_json(planned.folded.config),
        str(planned.float_type).removeprefix("torch."),
        planned.input_size,
        model.preprocess.mean,
        model.preprocess.std,
    )
    (folder / SETTINGS).write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")


def _write_photographs(planned: PlannedNetwork, model: LoadedModel, name: str, folder: Path) -> None:
    """Write the re-encoded pictures, their classes, and the logits of FP32 and of the simulated graph, float32."""
    images = resolve_image_set(name)
    if images.labels is None:
        raise ImageSetError(f"{name} has no labels; accuracy needs them. Name a labelled set: edgeconvnext data list.")
    class_of = match_labels(images, model.labels, model.config.num_classes)
    jpegs = [_jpeg(Image.fromarray(model.preprocess.pixels(images.read(index)))) for index in range(len(images))]
    settings = read_settings(folder)
    simulation = copy.deepcopy(planned.network)
    round_biases(simulation, planned.plan)
    quantize_activations(simulation, planned.plan)
    fp32, simulated = [], []
    with torch.inference_mode():
        for start in range(0, len(jpegs), EVALUATED_BATCH):
            batch = images_of(jpegs[start : start + EVALUATED_BATCH], settings)
            fp32.append(planned.folded(batch).numpy())
            simulated.append(simulation(batch).numpy())
    np.savez(
        folder / PHOTOGRAPHS,
        content=np.frombuffer(b"".join(jpegs), dtype=np.uint8),
        sizes=np.array([len(jpeg) for jpeg in jpegs]),
        classes=class_of[np.array(images.labels)],
        fp32=np.concatenate(fp32),
        simulated=np.concatenate(simulated),
    )


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run for target rtx, gpu, jetson or onnx")
    parser.add_argument("--photographs", help="a labelled image set of the model's classes")
    parser.add_argument("--pack", type=Path, default=PACK)
    return parser.parse_args()


if __name__ == "__main__":
    main()
