# ruff: noqa: B905  (boards run Python 3.8, whose zip has no `strict`)
"""The part of every kit's script that times two networks in turns and sums the times up as trtexec does."""

import math
import random
import time

WARM_UP_SECONDS = 0.2
LEAST_RUNS = 10
LEAST_BLOCKS = 10
BLOCK_SECONDS = 0.1
RESAMPLES = 1000
KEPT_SAMPLES = 200


def time_pair(networks, seconds):
    """Time networks in turns of short blocks, at least `seconds`, LEAST_RUNS and LEAST_BLOCKS each, after a warm-up.

    networks: by name, called without arguments, each returning its times in ms by name ("latency" among them).
    Returns {name: list of blocks}, each block a list of such times. Clocks and temperature drift; turns share that
    drift. Odd turns go in reverse order, and a turn's first run, on cold caches, is not counted.
    """
    for network in networks.values():
        end = time.perf_counter() + WARM_UP_SECONDS
        network()
        while time.perf_counter() < end:
            network()
    blocks = {name: [] for name in networks}
    spent = dict.fromkeys(networks, 0.0)

    def unfinished(name):
        done = blocks[name]
        return spent[name] < seconds or sum(map(len, done)) < LEAST_RUNS or len(done) < LEAST_BLOCKS

    turn = 0
    while any(map(unfinished, networks)):
        for name in list(networks)[:: -1 if turn % 2 else 1]:
            network = networks[name]
            network()
            start, block = time.perf_counter(), []
            while not block or time.perf_counter() - start < BLOCK_SECONDS:
                block.append(network())
            spent[name] += time.perf_counter() - start
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
    step = (len(samples) - 1) / max(1, min(KEPT_SAMPLES, len(samples)) - 1)
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
        "samples_ms": [samples[round(step * index)] for index in range(min(KEPT_SAMPLES, len(samples)))],
    }


def summaries(blocks, batch):
    """Sum up one network's blocks: the figures of "latency", with those of the other times under their names."""
    runs = [run for block in blocks for run in block]
    result = summary([run["latency"] for run in runs], batch)
    for name in runs[0]:
        if name != "latency":
            result[name] = summary([run[name] for run in runs], batch)
            del result[name]["samples_ms"]
    return result


def speedup(baseline_blocks, artifact_blocks):
    """Ratio of the medians, baseline over artifact, with a 95 % interval from resampling pairs of blocks."""
    pairs = list(zip(baseline_blocks, artifact_blocks))
    medians = [[quantile(sorted(run["latency"] for run in block), 0.5) for block in pair] for pair in pairs]

    def ratio(chosen):
        return quantile(sorted(pair[0] for pair in chosen), 0.5) / quantile(sorted(pair[1] for pair in chosen), 0.5)

    draw = random.Random(0)
    resampled = sorted(ratio([draw.choice(medians) for _ in medians]) for _ in range(RESAMPLES))
    value = ratio(medians)
    low, high = min(value, quantile(resampled, 0.025)), max(value, quantile(resampled, 0.975))
    return {"value": value, "low": low, "high": high}
