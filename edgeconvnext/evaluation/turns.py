# ruff: noqa: B905  (boards run Python 3.8, whose zip has no `strict`)
"""Networks timed in turns, on this machine and on every device: a part of each kit's script, Python 3.8 and its standard library.

The sums are trtexec's. A device writes every time to device.json (`blocks_ms`), so that whoever reads it computes them again.
"""

import math
import random
import time

WARM_UP_SECONDS = 0.2
LEAST_RUNS = 10
LEAST_BLOCKS = 10
BLOCK_SECONDS = 0.1
RESAMPLES = 1000
# Timing ends there, whatever time was asked for: device.json holds every run.
MOST_RUNS = 200_000
MOST_BLOCKS = 10_000


def time_in_turns(networks, seconds, warm_up=None, block_seconds=None, clock=time.perf_counter):
    """Time networks in turns of short blocks, at least `seconds`, LEAST_RUNS and LEAST_BLOCKS each, after a warm-up.

    MOST_RUNS or MOST_BLOCKS of one network end it for all. warm_up, block_seconds: None stands for the constants above.

    networks: by name, called without arguments, each returning its times in ms by name ("latency" among them).
    Returns {name: list of blocks}, each block a list of such times. Clocks and temperature drift; turns share that
    drift. Odd turns go in reverse order, and a turn's first run, on cold caches, is not counted.
    """
    warm_up = WARM_UP_SECONDS if warm_up is None else warm_up
    block_seconds = BLOCK_SECONDS if block_seconds is None else block_seconds
    for network in networks.values():
        end = clock() + warm_up
        network()
        while clock() < end:
            network()
    blocks = {name: [] for name in networks}
    spent = dict.fromkeys(networks, 0.0)

    def unfinished(name):
        done = blocks[name]
        return spent[name] < seconds or sum(map(len, done)) < LEAST_RUNS or len(done) < LEAST_BLOCKS

    def full(name):
        done = blocks[name]
        return len(done) >= LEAST_BLOCKS and (sum(map(len, done)) >= MOST_RUNS or len(done) >= MOST_BLOCKS)

    turn = 0
    while any(map(unfinished, networks)) and not any(map(full, networks)):
        for name in list(networks)[:: -1 if turn % 2 else 1]:
            network = networks[name]
            network()
            start, block = clock(), []
            while not block or clock() - start < block_seconds:
                block.append(network())
            spent[name] += clock() - start
            blocks[name].append(block)
        turn += 1
    return blocks


def quantile(ordered, share):
    """Linear interpolation between the two nearest of the sorted samples."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(samples, batch):
    """trtexec's figures for one list of times, milliseconds."""
    ordered = sorted(samples)
    mean = sum(ordered) / len(ordered)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in ordered) / len(ordered))
    return {
        "median_ms": quantile(ordered, 0.5),
        "mean_ms": mean,
        "min_ms": ordered[0],
        "max_ms": ordered[-1],
        "p90_ms": quantile(ordered, 0.90),
        "p95_ms": quantile(ordered, 0.95),
        "p99_ms": quantile(ordered, 0.99),
        "throughput": 1000.0 * batch / mean,
        "cv": deviation / mean,
        "runs": len(ordered),
    }


def summaries(blocks, batch):
    """Sum up one network's blocks: the figures of "latency" and its times, and the figures of the other times."""
    runs = [run for block in blocks for run in block]
    result = summary([run["latency"] for run in runs], batch)
    for name in runs[0]:
        if name != "latency":
            result[name] = summary([run[name] for run in runs], batch)
    result["blocks_ms"] = [[run["latency"] for run in block] for block in blocks]
    return result


def speedup(baseline_blocks, artifact_blocks):
    """Ratio of the medians, baseline over artifact, with a 95 % interval from resampling pairs of blocks.

    Drawn with random() alone, whose sequence Python promises for a seed: the reader of device.json repeats it.
    """
    pairs = list(zip(baseline_blocks, artifact_blocks))
    medians = [[quantile(sorted(run["latency"] for run in block), 0.5) for block in pair] for pair in pairs]

    def ratio(chosen):
        return quantile(sorted(pair[0] for pair in chosen), 0.5) / quantile(sorted(pair[1] for pair in chosen), 0.5)

    draw = random.Random(0)
    count = len(medians)
    resampled = sorted(ratio([medians[int(draw.random() * count)] for _ in medians]) for _ in range(RESAMPLES))
    value = ratio(medians)
    low, high = min(value, quantile(resampled, 0.025)), max(value, quantile(resampled, 0.975))
    return {"value": value, "low": low, "high": high}
