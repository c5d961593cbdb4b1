"""Parts of losses: see test_losses.py."""

import numpy as np
import rlax

from rljax.losses import basic

from .loss_case import Case


def rlax_clip_gradient(x, gradient_min, gradient_max):
    return rlax.clip_gradient(x, gradient_min, gradient_max)  # by position only


CASES = {
    "batched_index": Case(
        basic.batched_index,
        {"values": "T,A:real", "indices": "T:action"},
        always=("values",),
        stops=False,
        oracle=lambda values, indices: np.array(
            [row[i] for row, i in zip(values, indices, strict=True)]
        ),
        rlax=rlax.batched_index,
    ),
    "clip_gradient": Case(
        basic.clip_gradient,
        {"x": "T:real", "gradient_min": ":hyper", "gradient_max": ":hyper"},
        stops=False,
        oracle=lambda x, gradient_min, gradient_max: x,
        rlax=rlax_clip_gradient,
        any_shape=("x",),
        smooth=False,  # the clipped gradient is not the derivative
    ),
}
