"""Whether recovery of pruned networks pays, on ten crops of each image: on one, too few answers change to tell.

    python -m benchmarks.pruning_crops [--share 0.7 ...]

Networks are those that `python -m benchmarks.pruning` pruned, and its longest recovery trained, and kept. They are measured on ten
crops of each image of imagenette_val: four corners, the centre and their mirror images, of the image resized to 9/8 of the input.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from benchmarks.csv_rows import read_rows, write_rows
from benchmarks.pruning import BATCH, Bench, logits_of, network_path
from benchmarks.pruning_page import OWN, RECOVERED, write_page
from benchmarks.pruning_table import CROPS_RESULTS, CropsRow, PruningTable
from edgeconvnext.data.loader import batches
from edgeconvnext.evaluation.accuracy import agreement
from edgeconvnext.evaluation.intervals import Z95
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.load import load_model
from edgeconvnext.sqnr import logit_sqnr_db

SHARES = (0.7, 0.5, 0.35)
RECOVERY = "30 min"
CROPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--results", type=Path, default=CROPS_RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = PruningTable()
    names = {share: [f"{OWN} {share:g}", f"{OWN}{RECOVERED}{RECOVERY} {share:g}"] for share in options.share}
    missing = [name for pair in names.values() for name in pair if not network_path(name).is_file()]
    if missing:
        parser.error(
            f"no network is kept of {'; '.join(missing)}: run benchmarks.pruning, then benchmarks.pruning --recovery"
        )
    bench = Bench(table, [""], again=False)
    images = ten_crops(bench)
    reference = logits_of(bench.model.module, images.flatten(0, 1))
    for share, pair in names.items():
        rows = [row for row in read_rows(options.results, CropsRow) if row.target_share != share]
        networks = [cast(ConvNeXt, load_model(network_path(name)).module) for name in pair]
        write_rows(options.results, [*rows, measured(bench, share, images, reference, networks)])
    if options.results == CROPS_RESULTS:
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
    bench: Bench, share: float, images: torch.Tensor, reference: np.ndarray, networks: list[ConvNeXt]
) -> CropsRow:
    """Return the row of a pruned network and what recovery made of it. reference: the original's logits, crop after crop."""
    logits = [reference, *(logits_of(network, images.flatten(0, 1)) for network in networks)]
    right = [(each.argmax(1).reshape(-1, CROPS) == bench.labels[:, None]).mean(1) for each in logits]
    before, after, gain = right[0] - right[1], right[0] - right[2], right[2] - right[1]
    return CropsRow(
        target_share=share,
        recovered=RECOVERY,
        images=len(images),
        crops=CROPS,
        **intervals(drop_before=before, drop_after=after, gain=gain),
        agreement_before=agreement(logits[0], logits[1]),
        agreement_after=agreement(logits[0], logits[2]),
        sqnr_db_before=logit_sqnr_db(logits[0], logits[1]),
        sqnr_db_after=logit_sqnr_db(logits[0], logits[2]),
    )


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
