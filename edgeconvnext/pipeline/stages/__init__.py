"""The stages of a run: each a function from what it reads to files in the run directory.

(compress ->) fold -> (statistics ->) plan -> quantized -> artifact, and reference + artifact -> accuracy -> latency -> device; a
network without classifier has "outputs" in place of reference and accuracy. A stage whose inputs did not change is reused from
this run or copied from another one beside it.
"""

from edgeconvnext.pipeline.stages.analyze import analysis_of, analyze_plan
from edgeconvnext.pipeline.stages.artifact import export_artifact
from edgeconvnext.pipeline.stages.device_kit import KIT, write_kit
from edgeconvnext.pipeline.stages.evaluation import measure_networks
from edgeconvnext.pipeline.stages.finished import Finished
from edgeconvnext.pipeline.stages.latency import time_artifact
from edgeconvnext.pipeline.stages.quantization import Planned, plan_network, stored_plan
from edgeconvnext.pipeline.stages.quantized_graph import QuantizedGraph, quantize_network

__all__ = [
    "KIT",
    "Finished",
    "Planned",
    "QuantizedGraph",
    "analysis_of",
    "analyze_plan",
    "export_artifact",
    "measure_networks",
    "plan_network",
    "quantize_network",
    "stored_plan",
    "time_artifact",
    "write_kit",
]
