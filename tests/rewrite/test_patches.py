"""What a conv's output positions see: the conv is a matrix product of these rows with its weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeconvnext.rewrite.patches import patch_rows, windows

CONVS = {
    "stem": nn.Conv2d(3, 5, 4, stride=4),
    "overlapping": nn.Conv2d(3, 5, 3, stride=2, padding=1),
    "uneven": nn.Conv2d(2, 4, (3, 1), stride=(1, 2), padding=(1, 0)),
}


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("name", CONVS)
def test_rows_times_weights_are_the_convs_output(name: str, images: int) -> None:
    conv = CONVS[name]
    x = torch.randn(images, conv.in_channels, 12, 16, generator=torch.Generator().manual_seed(0))
    rows = patch_rows(conv, x)
    with torch.no_grad():
        expected = conv(x)
        computed = rows @ conv.weight.flatten(1).T + conv.bias
    # Sums of at most 48 float32 products in another order.
    torch.testing.assert_close(computed, expected.permute(0, 2, 3, 1).flatten(0, 2), rtol=1e-5, atol=1e-5)
    torch_rows = nn.functional.unfold(x, conv.kernel_size, padding=conv.padding, stride=conv.stride)
    torch_rows = torch_rows.transpose(1, 2).flatten(0, 1)
    assert torch.equal(rows, torch_rows)
    assert rows.stride() == torch_rows.stride()


def test_a_depthwise_conv_sees_each_channel_by_itself() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    x = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        computed = torch.einsum("nchwkl,ckl->nchw", windows(conv, x), conv.weight[:, 0]) + conv.bias[:, None, None]
        # Sums of nine float32 products in another order.
        torch.testing.assert_close(computed, conv(x), rtol=1e-5, atol=1e-5)
