"""A network as one Python file that needs torch and nothing of this package."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from edgeconvnext.errors import ExportError
from edgeconvnext.files import atomic_write
from edgeconvnext.model import convnext
from edgeconvnext.model.loaded import LoadedModel

_OWN_IMPORT = "from edgeconvnext.errors import ModelConfigError\n"
_LOADER = '''

{constants}


def load_network(weights: str | Path = WEIGHTS) -> ConvNeXt:
    """Return the trained network in eval mode: logits (N, {classes}) from images (N, {channels}, {height}, {width})."""
    with torch.device("meta"):
        network = ConvNeXt(CONFIG)
    network.load_state_dict(read_safetensors(weights), assign=True)
    return network.eval()


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read float32 tensors: eight bytes with the length of a JSON header, the header, then the tensors' bytes."""
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {{}}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "F32":
            raise ValueError(f"{{path}}: {{name}} is {{entry['dtype']}}, not F32; load it with the safetensors package.")
        first, last = (start + offset for offset in entry["data_offsets"])
        tensors[name] = torch.frombuffer(bytearray(content[first:last]), dtype=torch.float32).view(entry["shape"])
    return tensors
'''


def check_torch_code_path(path: Path) -> None:
    """Raise ExportError, before any work, unless `path` is a .py file to be."""
    if path.suffix != ".py" or path.is_dir():
        raise ExportError(f"The network's code is written as one Python file; {path} must end in .py.")
    if not path.stem.isidentifier():
        raise ExportError(
            f"{path.name} cannot be imported: a module's name is made of letters, digits and underscores."
        )


def write_torch_code(model: LoadedModel, weights: Path, path: Path) -> Path:
    """Write the definition of `model`'s network and a function that loads `weights`, a checkpoint of `save_checkpoint`.

    The file holds the network as this package defines it, its sizes, preprocessing and labels. It looks for the weights where
    they are now relative to it. Raises ExportError for a path that does not end in .py.
    """
    check_torch_code_path(path)
    source = inspect.getsource(convnext)
    if _OWN_IMPORT not in source or len(re.findall(r"^\s*(?:from|import) edgeconvnext", source, re.MULTILINE)) != 1:
        raise AssertionError("model/convnext.py imports more of this package than a file of its own can hold")
    fallback = 'class ModelConfigError(ValueError):\n    """Sizes that are no ConvNeXt\'s."""\n'
    head, _, rest = source.partition(_OWN_IMPORT)
    head = head.replace("from dataclasses", "import json\nfrom dataclasses", 1)
    head = head.replace("from typing", "from pathlib import Path\nfrom typing", 1)
    preprocess = model.preprocess
    constants = "\n".join(
        [
            f"CONFIG = {model.config!r}",
            f"PREPROCESS = {_plain(preprocess)!r}",
            f"LABELS = {None if model.labels is None else model.labels.names!r}",
            f"WEIGHTS = Path(__file__).resolve().parent / {_relative(weights, path)!r}",
        ]
    )
    channels, (height, width) = preprocess.in_channels, preprocess.input_size
    sizes = {"classes": model.config.num_classes, "channels": channels, "height": height, "width": width}
    code = f"{head}\n{fallback}{rest.rstrip()}\n{_LOADER.format(constants=constants, **sizes)}"
    atomic_write(path, code)
    return path


def _plain(preprocess: object) -> dict[str, object]:
    names = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
    return {name: getattr(preprocess, name) for name in names}


def _relative(weights: Path, path: Path) -> str:
    target, folder = weights.absolute(), path.absolute().parent
    try:
        return target.relative_to(folder).as_posix()
    except ValueError:
        return target.as_posix()
