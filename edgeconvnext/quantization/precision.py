"""How many bits each layer gets: the target's own, what the command line asks for, or a plan file, layer by layer.

A plan file is TOML; every run writes the one it was made with, every layer's bits as comments, to be edited and given back with
--plan:

    weights = 8
    activations = 8

    [layers."stages.3.1.pwconv2"]
    weights = 4

    [layers.head]
    float = true
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from edgeconvnext.choices import ActivationBits, WeightBits
from edgeconvnext.config_file import Section, parse_toml
from edgeconvnext.errors import ConfigFileError, QuantizationError, nearest
from edgeconvnext.escape import for_terminal
from edgeconvnext.model.layers import weighted_layers
from edgeconvnext.model.network import Network
from edgeconvnext.targets import Target


@dataclass(frozen=True)
class Precision:
    """Bits of one quantised layer's weights and of its input; activations None: the input stays in the float type."""

    weights: WeightBits
    activations: ActivationBits | None


class LayerEntry(Section):
    """One layer of a plan file: bits that differ from the file's own, or `float = true`."""

    weights: WeightBits | None = None
    activations: ActivationBits | None = None
    float: bool = False

    @model_validator(mode="after")
    def _float_has_no_bits(self) -> LayerEntry:
        if self.float and (self.weights or self.activations):
            raise ValueError("float = true leaves the layer unquantised; it takes no weights and no activations")
        return self


class BitPlan(Section):
    """Bits for the whole network and exceptions by layer; None takes the target's."""

    weights: WeightBits | None = None
    activations: ActivationBits | None = None
    layers: dict[str, LayerEntry] = Field(default={})

    def toml(self) -> str:
        """Return the plan as the text of a plan file."""
        import tomlkit

        return tomlkit.dumps(self.model_dump(exclude_defaults=True))

    def toml_with(self, precisions: Mapping[str, Precision]) -> str:
        """Return the plan as the text of a plan file, with every layer's bits as comments to start an edit from."""
        lines = ["# What each quantised layer has; layers that are not listed are float. To change one, add a section:"]
        lines += ["#", '#     [layers."stages.0.0.pwconv1"]', "#     weights = 4    # or float = true", "#"]
        for layer, bits in precisions.items():
            activations = "float" if bits.activations is None else f"{bits.activations}-bit"
            lines.append(f"# {for_terminal(layer)}: {bits.weights}-bit weights, {activations} activations")
        return self.toml() + "\n" + "\n".join(lines) + "\n"

    def over(self, other: BitPlan) -> BitPlan:
        """Return `other` with everything that this plan says put over it."""
        return BitPlan(
            weights=self.weights or other.weights,
            activations=self.activations or other.activations,
            layers={**other.layers, **self.layers},
        )

    def with_layers(self, entries: Mapping[str, LayerEntry]) -> BitPlan:
        """Return the plan with these exceptions added, or put in place of the old ones."""
        return self.model_copy(update={"layers": {**self.layers, **entries}})


def read_plan(path: Path) -> BitPlan:
    """Read a plan file; raises ConfigFileError, naming the key, where it does not hold."""
    if not path.is_file():
        raise ConfigFileError(f"There is no plan file {path}. Every run directory holds one: plan.toml.")
    return parse_toml(path, BitPlan)


def asked_bits(module: Network, target: Target, plan: BitPlan) -> dict[str, tuple[WeightBits, ActivationBits]]:
    """Return the bits of weights and input that plan and target ask for, of every quantised layer by path, in forward order.

    Whether the target's runtime has operators for them is its backend's to say (`backends.check_bits`).
    Raises QuantizationError for a layer that the network does not have.
    """
    layers = weighted_layers(module)
    unknown = [layer for layer in plan.layers if layer not in layers]
    if unknown:
        raise QuantizationError(
            f"The plan names {unknown[0]}, which this network does not have.{nearest(unknown[0], layers)} Its layers are called "
            f"{', '.join(list(layers)[:4])} and so on (see: edgeconvnext analyze)."
        )
    quantize = target.quantize
    foreign = [layer for layer in quantize.float_layers if layer not in layers]
    if foreign:
        raise QuantizationError(
            f"Target {target.name} keeps {foreign[0]} float, which this network does not have.{nearest(foreign[0], layers)} Its "
            "quantize.float_layers was found for another network; leave it out, or search again for this one."
        )
    result: dict[str, tuple[WeightBits, ActivationBits]] = {}
    for layer, operator in layers.items():
        entry = plan.layers.get(layer, LayerEntry())
        if entry.float or not quantize.takes(layer, operator):
            continue
        weights = entry.weights or plan.weights or quantize.weights.bits
        result[layer] = weights, entry.activations or plan.activations or quantize.activations.bits
    return result


def resolve_precision(module: Network, target: Target, plan: BitPlan) -> dict[str, Precision]:
    """Return the precision of every layer that is quantised, by path, in forward order; the others stay float.

    16-bit activations are the float type where that is float16, and int16 elsewhere. Raises as `asked_bits`.
    """
    half = target.float_type == "float16"
    return {
        layer: Precision(weights, None if activations == 16 and half else activations)
        for layer, (weights, activations) in asked_bits(module, target, plan).items()
    }
