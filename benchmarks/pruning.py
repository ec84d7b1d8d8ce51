"""Pruning side by side: this toolkit and Torch-Pruning at equal multiply-adds, without training and with recovery.

    python -m benchmarks.pruning [--method TEXT ...] [--again]
    python -m benchmarks.pruning --recovery      # then train what was pruned, 10 and 30 processor minutes each: ten hours;
                                                 # on a GPU, 10 and 40 epochs
    python -m benchmarks.pruning --timings       # onnxruntime's times of the networks that are kept, on a quiet machine;
                                                 # --again takes all anew
    python -m benchmarks.pruning --page          # write docs/pruning.md's tables and the plot from the CSV, measure nothing

ConvNeXt-Atto trained on Imagenette, 128 px. All methods get the same calibration images (a third of which this toolkit holds out
for its choices; Torch-Pruning's Taylor takes all of them, with their labels) and are measured once on imagenette_val.
Torch-Pruning works in an environment of its own, on the network's torch-only code. Recovery is this toolkit's label-free
distillation for either tool's network, on all training photographs but the held-out ones. Rows in the CSV are kept; an interrupted
benchmark, and an interrupted recovery, goes on.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from benchmarks.peers.worker import WorkerError, environment
from benchmarks.photographs import WEIGHTS, use_photographs
from benchmarks.pruning_page import write_page, write_plot
from benchmarks.pruning_table import RESULTS, SHARES, PruningRow, PruningTable
from edgeconvnext.choices import Score
from edgeconvnext.data.image_set import ImageSet, split_held_out
from edgeconvnext.data.loader import batches
from edgeconvnext.data.sets import resolve_image_set
from edgeconvnext.evaluation.accuracy import agreement, paired_drop, topk
from edgeconvnext.machine import cpu_name
from edgeconvnext.model.checkpoint import save_checkpoint
from edgeconvnext.model.convnext.network import ConvNeXt
from edgeconvnext.model.load import load_model
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.macs import count_macs, count_parameters
from edgeconvnext.model.torch_code import write_torch_code
from edgeconvnext.rewrite.exact import fold_layer_scale
from edgeconvnext.rewrite.prune import prune
from edgeconvnext.rewrite.prune_costs import Budget
from edgeconvnext.rewrite.prune_curves import Curve
from edgeconvnext.rewrite.sparsity import sparsify
from edgeconvnext.sqnr import logit_sqnr_db
from edgeconvnext.train.distill import Distilled, DistillOptions, distill
from edgeconvnext.train.world import own_device

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache" / "pruning"
CALIBRATION_IMAGES = 512
BATCH = 64

OWN_SCORES: dict[str, Score] = {
    "elimination": "elimination",
    "energy": "energy",
    "magnitude": "magnitude",
    "taylor": "taylor",
}
PEER_METHODS = (
    "magnitude, global, hidden only",
    "magnitude, local, hidden only",
    "magnitude, global, whole network",
    "magnitude, local, whole network",
    "taylor, global, hidden only",
    "taylor, local, hidden only",
    "taylor, global, whole network",
    "taylor, local, whole network",
)
RECOVERED_PEERS = ("taylor, local, hidden only", "magnitude, local, hidden only")
"""Torch-Pruning's best of either ranking without training; at 35 % Taylor's global ranking loses less."""
RECOVERED_SHARES = (0.35, 0.5, 0.7, 0.8, 0.9)
RECOVERIES = {
    "10 min": DistillOptions(epochs=200, budget_minutes=10),
    "30 min": DistillOptions(epochs=200, budget_minutes=30),
}
GPU_RECOVERIES = {
    "10 epochs on a GPU": DistillOptions(epochs=10),
    "40 epochs on a GPU": DistillOptions(epochs=40),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", default=[""], help="only methods whose name contains one of these texts")
    parser.add_argument("--again", action="store_true", help="measure the chosen rows anew")
    parser.add_argument("--recovery", action="store_true", help="only train what was pruned")
    parser.add_argument("--share", type=float, nargs="+", help="shares that --recovery takes in place of its own")
    parser.add_argument("--how", default="", help="only recoveries whose name contains this text, as in: 10 min")
    parser.add_argument("--timings", action="store_true", help="only take the times that are missing")
    parser.add_argument("--page", action="store_true", help="only write the page and the plot from the CSV")
    parser.add_argument("--results", type=Path, default=RESULTS, help="another CSV; page and plot are then left alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = PruningTable(options.results)
    if options.timings:
        take_times(table, options.method, options.again)
    elif not options.page:
        bench = Bench(table, options.method, options.again)
        if options.recovery:
            bench.recovered(options.share, options.how)
        else:
            bench.own()
            bench.sparse()
            bench.peer()
    if options.results == RESULTS:
        write_page(table.rows)
        write_plot(table.rows)


class Bench:
    """The network, its images, and what is measured of every pruned one."""

    def __init__(self, table: PruningTable, chosen: list[str], again: bool) -> None:
        self.table, self.chosen, self.again = table, chosen, again
        use_photographs()
        loaded = load_model(WEIGHTS)
        folded = fold_layer_scale(loaded.module).eval()
        self.model = replace(loaded, module=folded, config=folded.config)
        self.calibration = resolve_image_set("imagenette").take(CALIBRATION_IMAGES)
        self.evaluation = resolve_image_set("imagenette_val")
        self.labels = np.array(self.evaluation.labels, dtype=np.int64)
        self.size = loaded.preprocess.input_size
        self.macs = count_macs(folded, self.size)
        CACHE.mkdir(parents=True, exist_ok=True)
        self.images = self._images(self.evaluation, None)
        self.reference = logits_of(folded, self.images)
        self.write_network("original", folded)
        self._note("original", 1.0, folded, self.reference, 0.0)

    def own(self) -> None:
        """This toolkit's scores, each with the re-fit and the measured allocation; the default is the elimination."""
        fit, held_out = (self._images(self.calibration, part) for part in split_held_out(self.calibration))
        for name, score in OWN_SCORES.items():
            method = f"edgeconvnext, {name}"
            curves: dict[str, Curve] | None = None
            for share in self._missing(method):
                start = time.perf_counter()
                result = prune(
                    self.model.module,
                    fit.split(BATCH),
                    held_out.split(BATCH),
                    Budget("macs", share),
                    input_size=self.size,
                    score=score,
                    curves=curves,
                )
                seconds = time.perf_counter() - start
                curves = result.curves
                self._finish(method, share, result.module, seconds, result.verdict.kl)

    def sparse(self) -> None:
        """2:4 sparsity of the whole network; its multiply-adds are counted as if zeros cost as much as other weights."""
        method = "edgeconvnext, 2:4 sparsity"
        if self._wanted(method, 1.0):
            fit, held_out = (self._images(self.calibration, part) for part in split_held_out(self.calibration))
            start = time.perf_counter()
            result = sparsify(self.model.module, fit.split(BATCH), held_out.split(BATCH))
            self._finish(method, 1.0, result.module, time.perf_counter() - start, result.kl)

    def peer(self) -> None:
        """Torch-Pruning: one process for each method, which prunes step by step and answers at every share."""
        for number, name in enumerate(PEER_METHODS):
            method = f"torch-pruning, {name}"
            shares = list(self._missing(method))
            if not shares:
                continue
            folder = CACHE / f"peer{number}"
            folder.mkdir(exist_ok=True)
            try:
                self._run_peer(name, shares, folder)
            except (WorkerError, subprocess.CalledProcessError) as error:
                self.table.put(PruningRow(method=method, target_share=shares[0], error=_last_line(error)))
                continue
            for share in shares:
                answer = np.load(folder / f"{share}.npz")
                row = self._row(method, share, answer["logits"], float(answer["seconds"]), None)
                row.macs, row.parameters = int(answer["macs"]), int(answer["parameters"])
                row.share = row.macs / self.macs
                self.table.put(row)
                self.write_network(f"{method} {share:g}", cast(ConvNeXt, load_model(folder / f"{share}.pt").module))

    def recovered(self, shares: Sequence[float] | None, how: str) -> None:
        """Both tools' pruned networks, trained without labels towards the original; rows are made where the network is there."""
        for recovery, options in (RECOVERIES if own_device().type == "cpu" else GPU_RECOVERIES).items():
            for share in (shares or RECOVERED_SHARES) if how in recovery else ():
                for pruned in ("edgeconvnext, elimination", *(f"torch-pruning, {name}" for name in RECOVERED_PEERS)):
                    method, path = f"{pruned}, recovered {recovery}", network_path(f"{pruned} {share:g}")
                    if not path.is_file() or not self._wanted(method, share):
                        continue
                    done = self.trained(path, options)
                    self._finish(method, share, done.module, 60 * done.minutes, None, done.images)

    def trained(self, path: Path, options: DistillOptions) -> Distilled:
        """Train the network of a file towards the original; interrupted, it goes on with the next call."""
        held_out = {self.calibration.ids[index] for index in split_held_out(self.calibration)[1]}
        photographs = resolve_image_set("imagenette")
        checkpoint = CACHE / f"{path.stem}_{options.budget_minutes}_{options.epochs}.pt"
        done = distill(
            cast(ConvNeXt, load_model(path).module),
            cast(ConvNeXt, self.model.module),
            photographs,
            self.model.preprocess,
            options,
            indices=[index for index, each in enumerate(photographs.ids) if each not in held_out],
            checkpoint=checkpoint,
        )
        checkpoint.unlink(missing_ok=True)
        return done

    def _run_peer(self, name: str, shares: list[float], folder: Path) -> None:
        write_torch_code(self.model, network_path("original"), CACHE / "network.py")
        arrays = {
            "calibration": CACHE / "calibration.npy",
            "evaluation": CACHE / "evaluation.npy",
            "labels": CACHE / "calibration_labels.npy",
        }
        if not arrays["evaluation"].is_file():
            np.save(arrays["calibration"], self._images(self.calibration, None).numpy())
            np.save(arrays["labels"], np.array(self.calibration.labels, dtype=np.int64))
            np.save(arrays["evaluation"], self.images.numpy())
        command = [str(environment("torch_pruning")), str(HERE / "peers" / "torch_pruning.py"), str(CACHE), str(folder)]
        command += [name, *map(str, shares)]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)

    def _missing(self, method: str) -> Iterator[float]:
        return (share for share in SHARES if self._wanted(method, share))

    def _wanted(self, method: str, share: float) -> bool:
        if not any(text in method for text in self.chosen):
            return False
        row = self.table.find(method, share)
        return self.again or row is None or row.error is not None

    def _finish(
        self,
        method: str,
        share: float,
        module: ConvNeXt,
        seconds: float,
        kl: float | None,
        learnt_from: int | None = None,
    ) -> None:
        self.write_network(f"{method} {share:g}", module)
        self._note(method, share, module, logits_of(module, self.images), seconds, kl, learnt_from)

    def _note(
        self,
        method: str,
        share: float,
        module: ConvNeXt,
        logits: np.ndarray,
        seconds: float,
        kl: float | None = None,
        learnt_from: int | None = None,
    ) -> None:
        row = self._row(method, share, logits, seconds, kl)
        row.learnt_from = learnt_from
        row.macs, row.parameters = count_macs(module, self.size), count_parameters(module)
        row.share = row.macs / self.macs
        before = self.table.find(method, share)
        if before is None or method != "original":
            self.table.put(row)

    def _row(self, method: str, share: float, logits: np.ndarray, seconds: float, kl: float | None) -> PruningRow:
        drop = paired_drop(self.reference, logits, self.labels)
        return PruningRow(
            method=method,
            target_share=share,
            images=len(self.labels),
            calibration_images=CALIBRATION_IMAGES,
            top1=topk(logits, self.labels).value,
            drop_pp=drop.value,
            drop_low=drop.low,
            drop_high=drop.high,
            agreement=agreement(self.reference, logits),
            sqnr_db=logit_sqnr_db(self.reference, logits),
            held_out_kl=kl,
            seconds=seconds,
            cpu=cpu_name() if own_device().type == "cpu" else torch.cuda.get_device_name(),
        )

    def _images(self, image_set: ImageSet, indices: list[int] | None) -> torch.Tensor:
        stream = batches(image_set, self.model.preprocess, BATCH, indices, description=f"Reading {image_set.name}")
        return torch.cat([batch.images for batch in stream])

    def write_network(self, name: str, module: ConvNeXt) -> None:
        save_checkpoint(replace(self.model, module=module, config=module.config), network_path(name))


def network_path(name: str) -> Path:
    """Return where the network of a row is kept, for recovery and times."""
    return CACHE / f"{name.replace(', ', '-').replace(' ', '_').replace(':', '')}.safetensors"


@torch.no_grad()
def logits_of(module: ConvNeXt, images: torch.Tensor) -> np.ndarray:
    """Return the answers to `images`, computed in float32 on the GPU where there is one."""
    device = own_device()
    there = copy.deepcopy(module).to(device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return torch.cat([there(batch.to(device)).cpu() for batch in images.split(BATCH)]).numpy()


def take_times(table: PruningTable, chosen: list[str], again: bool) -> None:
    """Time each of the chosen networks that is kept beside the original, in turns, batch 1, one thread."""
    from edgeconvnext.backends.onnxruntime.float_latency import compare_latency

    original: LoadedModel = load_model(network_path("original"))
    for row in table.rows:
        path = network_path(f"{row.method} {row.target_share:g}")
        if not any(text in row.method for text in chosen) or not path.is_file():
            continue
        if row.latency_ms is not None and not again:
            continue
        pruned = load_model(path)
        shape = (original.config.in_channels, *original.preprocess.input_size)
        timed = compare_latency(original.module, pruned.module, shape)
        row.latency_ms, row.speedup = timed.after_ms, timed.speedup
        table.put(row)


def _last_line(error: Exception) -> str:
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) and error.stderr else str(error)
    return text.strip().splitlines()[-1][:300]


if __name__ == "__main__":
    main()
