"""The forms of one network that are timed against each other on a GPU: float ones in torch, the int8 one in Triton kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from edgeconvnext.backends.triton.network import TritonNetwork
from edgeconvnext.model.convnext.network import ConvNeXt

Call = Callable[[], None]
INT8 = "INT8 Triton"


@dataclass(frozen=True)
class Form:
    """One way to run a network. call: run it once, to the end of the GPU's work. layer_scale: "folded", or "separate"."""

    name: str
    layer_scale: str
    call: Call

    @property
    def key(self) -> str:
        return f"{self.name}, layer scale {self.layer_scale}"


def float_forms(folded: ConvNeXt, images: torch.Tensor) -> list[Form]:
    """Return the float forms, warmed up: eager float32, eager float16 channels-last, compiled float16.

    folded: the float network, on any device. images: (N, C, H, W), float32, on the GPU, which every form reads in place. They run
    with layer scale folded and, where the network had one, as a multiplication of its own. Compiled ones run as CUDA graphs; eager
    ones start kernel by kernel, which is what eager means.
    """
    # torch compiles one function for so many networks only, and runs later ones eagerly without a word.
    torch.compiler.reset()
    half = images.half().contiguous(memory_format=torch.channels_last)
    networks = {"folded": folded}
    if folded.config.version == 1:
        networks["separate"] = with_layer_scale(folded)
    forms = []
    for layer_scale, network in networks.items():
        single = copy.deepcopy(network).eval().to(images.device)
        channels_last = copy.deepcopy(single).half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        compiled = torch.compile(channels_last, mode="reduce-overhead", dynamic=False)
        forms += [
            Form("eager FP32", layer_scale, _synchronised(single, images)),
            Form("eager FP16 channels-last", layer_scale, _synchronised(channels_last, half)),
            Form("torch.compile FP16", layer_scale, _synchronised(compiled, half)),
        ]
    for form in forms:
        for _ in range(3):
            form.call()
    return forms


def int8_form(int8: TritonNetwork, images: torch.Tensor) -> Form:
    """Return the int8 network as a CUDA graph, tuned for `images`: (N, C, H, W), float32, on the GPU."""
    return Form(INT8, "folded", _captured(int8, images))


def with_layer_scale(folded: ConvNeXt) -> ConvNeXt:
    """Return a network that computes the same and has a layer scale of its own: ones, which take the time of any numbers."""
    network = ConvNeXt(replace(folded.config, layer_scale=True))
    network.load_state_dict(folded.state_dict(), strict=False)
    for path in network.inverted_bottlenecks:
        nn.init.ones_(network.get_parameter(f"{path}.gamma"))
    return network.eval()


def _synchronised(network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> Call:
    def call() -> None:
        with torch.inference_mode():
            network(images)
        torch.cuda.synchronize()

    return call


def _captured(network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> Call:
    """Record the network's kernels once; a call starts them all at once. Tuning happens before, on a stream of its own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            network(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        network(images)

    def call() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return call
