import torch

from foundation_stereo_depth.data.random import sample_keys
from foundation_stereo_depth.data.synthetic.torch_shading import (
    draw_highlights,
    draw_shadows,
    highlight_rgb,
    light_left_by_shadows,
)


def test_shadows_lie_on_surfaces_and_glows_do_not() -> None:
    keys = sample_keys(0, 0, torch.arange(40))
    x, y = torch.rand(2, 40, 50, 1, generator=torch.Generator().manual_seed(0))
    light = light_left_by_shadows(draw_shadows(keys, 120, 160), 160 * x, 120 * y)
    assert light.min() > 0.05
    assert light.max() == 1
    assert 0.02 < (light < 0.8).float().mean() < 0.4
    highlights = draw_highlights(keys, 120, 160)
    left, right = (highlight_rgb(highlights, 120, 160, from_right=from_right) for from_right in (False, True))
    assert (left.amax(dim=(1, 2, 3)) > 0.1).float().mean() > 0.25
    assert ((left - right).abs().amax(dim=(1, 2, 3)) > 0.1).float().mean() > 0.25
