"""Whether recovery of pruned networks pays, on ten crops of each image: on one, too few answers change to tell.

    python -m benchmarks.pruning_crops [--share 0.7 ...]

Networks are those that `python -m benchmarks.pruning` pruned and kept; each is trained once more, for the longest of that
benchmark's recoveries, with the images in another order (a seed of its own). Both are then measured on imagenette_val: on the
crop that the other rows are measured on, and on ten (four corners, the centre and their mirror images, of the image resized to 9/8
of the input). What was trained is kept and not trained again; interrupted training goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from benchmarks.csv_rows import read_rows, write_rows
from benchmarks.pruning import BATCH, RECOVERIES, Bench, logits_of, network_path
from benchmarks.pruning_page import OWN, write_page
from benchmarks.pruning_table import CROPS_RESULTS, CropsRow, PruningTable
from edgeconvnext.data.loader import batches
from edgeconvnext.model.convnext import ConvNeXt
from edgeconvnext.model.load import load_model
from edgeconvnext.validate.accuracy import Z95, agreement, logit_sqnr_db

SHARES = (0.7, 0.5, 0.35)
RECOVERY, SEED = "30 min", 1
CROPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--results", type=Path, default=CROPS_RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = PruningTable()
    bench = Bench(table, [""], again=False)
    views = {1: bench.images[:, None], CROPS: ten_crops(bench)}
    reference = {crops: logits_of(bench.model.module, images.flatten(0, 1)) for crops, images in views.items()}
    for share in options.share:
        rows = [row for row in read_rows(options.results, CropsRow) if row.target_share != share]
        write_rows(options.results, [*rows, *measured(bench, share, views, reference)])
    write_page(table.rows)


def ten_crops(bench: Bench) -> torch.Tensor:
    """Return (N, 10, C, H, W): corners and centre of each evaluation image, and their mirror images."""
    height, width = bench.size
    larger = (height * 9 // 8, width * 9 // 8)
    preprocess = replace(bench.model.preprocess, input_size=larger)
    stream = batches(bench.evaluation, preprocess, BATCH, description="Reading ten crops")
    images = torch.cat([batch.images for batch in stream])
    tops, lefts = ((0, 0, side // 16, side // 8, side // 8) for side in bench.size)
    corners = zip(tops, (lefts[0], lefts[-1], lefts[2], lefts[0], lefts[-1]), strict=True)
    crops = [images[:, :, top : top + height, left : left + width] for top, left in corners]
    return torch.stack([*crops, *(crop.flip(-1) for crop in crops)], 1)


def measured(
    bench: Bench, share: float, views: dict[int, torch.Tensor], reference: dict[int, np.ndarray]
) -> list[CropsRow]:
    """Train the network of this share, where that is not done, and return a row for each number of crops."""
    path = network_path(f"{OWN} {share:g}")
    name = f"{OWN}, recovered {RECOVERY}, seed {SEED} {share:g}"
    if not network_path(name).is_file():
        done = bench.trained(path, replace(RECOVERIES[RECOVERY], seed=SEED))
        bench.write_network(name, done.module)
    networks = [cast(ConvNeXt, load_model(each).module) for each in (path, network_path(name))]
    rows = []
    for crops, images in views.items():
        logits = [reference[crops], *(logits_of(network, images.flatten(0, 1)) for network in networks)]
        right = [(each.argmax(1).reshape(-1, crops) == bench.labels[:, None]).mean(1) for each in logits]
        before, after, gain = right[0] - right[1], right[0] - right[2], right[2] - right[1]
        rows.append(
            CropsRow(
                target_share=share,
                recovered=RECOVERY,
                seed=SEED,
                images=len(images),
                crops=crops,
                **intervals(drop_before=before, drop_after=after, gain=gain),
                agreement_before=agreement(logits[0], logits[1]),
                agreement_after=agreement(logits[0], logits[2]),
                sqnr_db_before=logit_sqnr_db(logits[0], logits[1]),
                sqnr_db_after=logit_sqnr_db(logits[0], logits[2]),
            )
        )
    return rows


def intervals(**differences: np.ndarray) -> dict[str, float]:
    """Return mean, lower and upper end (95 %) in points of each difference; its values are of one image each."""
    ends = {}
    for name, values in differences.items():
        half = Z95 * values.std(ddof=1) / len(values) ** 0.5
        ends |= {name: 100 * values.mean(), f"{name}_low": 100 * (values.mean() - half)}
        ends[f"{name}_high"] = 100 * (values.mean() + half)
    return ends


if __name__ == "__main__":
    main()
