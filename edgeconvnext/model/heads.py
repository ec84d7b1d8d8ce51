"""Cut a loaded classifier down to a backbone: stage outputs for detection and segmentation, embeddings for retrieval."""

from __future__ import annotations

import dataclasses

from edgeconvnext.choices import Head
from edgeconvnext.errors import ModelConfigError
from edgeconvnext.model.build import build_empty
from edgeconvnext.model.loaded import LoadedModel
from edgeconvnext.model.network import EndsWith

_ENDS: dict[Head, EndsWith] = {"features": "stages", "none": "last_stage", "gap": "head"}


def require_answers(model: LoadedModel) -> None:
    """Raise ModelConfigError for a network that ends with its stages, where something is judged by its logits."""
    if model.config.ends_with != "head":
        raise ModelConfigError(
            f"{model.name} ends with {', '.join(model.module.output_names)}, and what is asked for is judged by logits. Do it "
            "with the classifier, and export what comes out with --head."
        )


def with_head(model: LoadedModel, head: Head) -> LoadedModel:
    """Return the model with another end, its weights shared; "classifier" leaves it as it is.

    head: "features" gives the output of every stage (strides 4, 8, 16, 32 for ConvNeXt), "none" that of the last one, both as the
    stages leave them, without a norm; "gap" the pooled embedding behind the head's norm, where the network has one.
    Raises ModelConfigError for an embedding of a network whose head norm was cut off before.
    """
    if head == "classifier":
        return model
    ends_with = _ENDS[head]
    if ends_with == "head" and model.config.ends_with != "head":
        raise ModelConfigError(
            f"{model.name} ends with its stages: the norm that an embedding goes through is not in the file any more. Load the "
            "classifier it was made from, or take --head none and pool its output."
        )
    config = model.config.with_end(ends_with)
    module = build_empty(config)
    state = model.module.state_dict()
    module.load_state_dict({name: state[name] for name in module.state_dict()}, assign=True)
    return dataclasses.replace(model, module=module, config=config, labels=None)
