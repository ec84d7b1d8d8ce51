"""torchao's PT2E flow with its own quantizer for x86 CPUs, X86InductorQuantizer; takes the torch.export program."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
import torch._inductor.config
import torchao
from torch.export import Dim
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from benchmarks.peers.protocol import EVALUATION_BATCH, Loaded, Task, calibration_batches, serve

# reduce_range of the default configuration
METHODS = {"X86InductorQuantizer": False, "X86InductorQuantizer, reduce_range": True}


class TorchAo:
    def versions(self) -> str:
        return f"torch {torch.__version__.partition('+')[0]}, torchao {torchao.__version__}"

    def quantize(self, task: Task) -> list[Path]:
        """Calibrate, convert, and save the converted program."""
        warnings.simplefilter("ignore")
        configuration = get_default_x86_inductor_quantization_config(reduce_range=METHODS[task.method])
        quantizer = X86InductorQuantizer().set_global(configuration)
        prepared = prepare_pt2e(torch.export.load(task.program).module(), quantizer)
        batches = calibration_batches(task, EVALUATION_BATCH)
        with torch.inference_mode():
            for batch in batches:
                prepared(torch.from_numpy(batch))
        converted = convert_pt2e(prepared)
        _drop_unused(converted)
        example = torch.from_numpy(batches[0][:2])
        dynamic = ({0: Dim("batch", min=1, max=32)},)
        torch.export.save(torch.export.export(converted, (example,), dynamic_shapes=dynamic), task.artifact)
        return [task.artifact]

    def load(self, artifact: Path, threads: int | None) -> Loaded:
        """Run the converted graph; compiled, as this quantizer is meant to be used, where it is timed.

        Compiling takes a minute for each batch size and changes logits by 1e-7 of the largest, so only times need it.
        """
        warnings.simplefilter("ignore")
        module = torch.export.load(artifact).module(check_guards=False)
        if threads is not None:
            torch.set_num_threads(threads)
            torch._inductor.config.freezing = True
            module = torch.compile(module)

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return module(torch.from_numpy(images)).numpy()

        return Loaded(run, f"torch {torch.__version__.partition('+')[0]} (converted graph, timed with torch.compile)")


def _drop_unused(module: torch.fx.GraphModule) -> None:
    """Remove the float weights that int8 ones replaced; torch.export would keep them in the file."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            path, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(path), attribute)


if __name__ == "__main__":
    serve(TorchAo())
