"""What a checkpoint that is not a ConvNeXt looks like, so that its error can say more than no."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SIGNS: tuple[tuple[str, str], ...] = (
    (r"^visual\.trunk\.stem\.", "a CLIP model with a ConvNeXt image tower; load a fine-tuned classifier instead"),
    (
        r"^(encoder|decoder)\..*\.kernel$|^mask_token$",
        "ConvNeXt V2 pretraining (FCMAE) weights; load a fine-tuned checkpoint",
    ),
    (r"relative_position_bias_table|\.attn\.(logit_scale|cpb_mlp)", "a Swin Transformer"),
    (
        r"\.attn\.qkv\.|(^|\.)cls_token$|encoder_layer_\d+\.self_attention|\.attention\.attention\.query\.",
        "a Vision Transformer (ViT)",
    ),
    (r"^(backbone|rpn|roi_heads|neck|bbox_head|decode_head)\.", "a detection or segmentation model"),
    (r"^layer[1-4]\.\d+\.conv\d|^(resnet\.)?encoder\.stages\.\d+\.layers\.\d+\.layer\.", "a ResNet"),
    (r"conv_stem\.|_conv_stem|_expand_conv|\.(conv_pw|conv_pwl|conv_dw|se)\..*", "an EfficientNet or MobileNet"),
    (r"running_mean$", "a network with batch normalisation"),
    (r"lora_[AB]", "LoRA adapters; merge them into the model and save that"),
    (r"_packed_params|\.scale$|zero_point", "an already quantised model; load the float checkpoint"),
)


def looks_like(names: Iterable[str]) -> str | None:
    """Return what the tensor names remind of ("a ResNet"), or None."""
    names = list(names)
    for pattern, architecture in _SIGNS:
        if any(re.search(pattern, name) for name in names):
            return architecture
    return None
