"""Compile every kernel, with the largest and the smallest blocks, for one compute capability; prints a JSON line for each.

No GPU is needed. Run as python compile_kernels.py 90, without TRITON_INTERPRET: an interpreted kernel has nothing to compile.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from edgeconvnext.backends.triton.depthwise import _depthwise_norm_kernel
from edgeconvnext.backends.triton.linear import _int8_linear_kernel
from edgeconvnext.backends.triton.norms import _norm_rows_kernel
from edgeconvnext.backends.triton.quantize import _quantize_kernel

POINTERS = {
    "x_ptr": "*i8", "weight_ptr": "*i8", "start_ptr": "*i32", "residual_ptr": "*fp16", "floats_ptr": "*fp16", "codes_ptr": "*i8"
}  # fmt: skip
WHOLE = {"rows", "columns", "depth", "positions", "height", "width", "elements", "channels", "channel_stride"}
EPILOGUES = {
    "pwconv1": {"ACTIVATE": True, "RESIDUAL": False, "FLOATS": False, "CODES": True},
    "pwconv2": {"ACTIVATE": False, "RESIDUAL": True, "FLOATS": True, "CODES": True},
}


def type_of(name: str, own: dict[str, str]) -> str:
    if name.endswith("_ptr"):
        return own.get(name) or POINTERS.get(name, "*fp32")
    return "i32" if name in WHOLE else "fp32"


def compile_for(
    capability: int, label: str, kernel: Any, config: triton.Config | None, constants: dict[str, Any], **own: str
) -> None:
    names = kernel.arg_names
    constants = constants | (config.kwargs if config else {})
    signature = {name: "constexpr" if name in constants else type_of(name, own) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    values = {(names.index(name),): value for name, value in constants.items()}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages} if config else {}
    source = ASTSource(kernel, signature, values, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    line = {
        "kernel": label,
        "config": str(config),
        "shared_bytes": compiled.metadata.shared,
        "tensor_cores": "wgmma" in ptx or "mma.sync" in ptx,
        "machine_code": "cubin" in compiled.asm,
    }
    print(json.dumps(line))


def ends(kernel: Any) -> list[triton.Config]:
    return [kernel.configs[0], kernel.configs[-1]]


def main(capability: int) -> None:
    for label, epilogue in EPILOGUES.items():
        for config in ends(_int8_linear_kernel):
            compile_for(capability, label, _int8_linear_kernel.fn, config, epilogue)
    norm = {"CHANNELS": 96, "BLOCK": 128, "HAS_NORM": True}
    for config in ends(_depthwise_norm_kernel):
        constants = norm | {"KERNEL": 7, "HAS_ZERO": False}
        compile_for(capability, "depthwise", _depthwise_norm_kernel.fn, config, constants)
    for config in ends(_norm_rows_kernel):
        constants = norm | {"FLOATS": True, "CODES": True}
        compile_for(capability, "norm", _norm_rows_kernel.fn, config, constants, x_ptr="*fp16", weight_ptr="*fp32")
    compile_for(capability, "quantize", _quantize_kernel, None, {"BLOCK": 1024}, x_ptr="*fp32")


if __name__ == "__main__":
    main(int(sys.argv[1]))
