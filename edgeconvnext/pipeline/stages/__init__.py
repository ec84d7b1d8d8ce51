"""The stages of a run: each a function from what it reads to files in the run directory.

(compress ->) fold -> (statistics ->) plan -> quantized -> artifact, and reference + artifact -> accuracy -> latency -> device; a
network without classifier has "outputs" in place of reference and accuracy. A stage whose inputs did not change is taken over
from this run or another one beside it.
"""

from edgeconvnext.pipeline.stages.analyze import analysis, analysis_of
from edgeconvnext.pipeline.stages.evaluation import evaluated, latency, other_sizes, outputs, reference
from edgeconvnext.pipeline.stages.network import compress, float_program, fold, folded_model, proof_images
from edgeconvnext.pipeline.stages.quantization import plan, quantized, quantized_program, simulation, statistics

__all__ = [
    "analysis",
    "analysis_of",
    "compress",
    "evaluated",
    "float_program",
    "fold",
    "folded_model",
    "latency",
    "other_sizes",
    "outputs",
    "plan",
    "proof_images",
    "quantized",
    "quantized_program",
    "reference",
    "simulation",
    "statistics",
]
