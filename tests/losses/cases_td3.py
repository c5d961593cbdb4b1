"""Losses of deterministic actor-critics: see test_losses.py."""

import numpy as np

from rljax import losses

from .cases_sac import TD
from .loss_case import Case


def dpg(a_t, dqda_t, dqda_clipping):
    norm = np.sqrt(sum(g**2 for g in dqda_t))
    if norm > dqda_clipping:
        dqda_t = [g * dqda_clipping / norm for g in dqda_t]
    return -sum(a * g for a, g in zip(a_t, dqda_t, strict=True))


CASES = {
    "dpg_loss": Case(
        losses.dpg_loss,
        {"a_t": "D:real", "dqda_t": "D:real", "dqda_clipping": ":hyper"},
        always=("a_t",),
        network=("dqda_t",),
        live=("dqda_clipping",),
        loss=True,
        oracle=dpg,
    ),
    "td3_learning": Case(
        losses.td3_learning,
        TD | {"q_t": "M:real"},
        always=("q_tm1",),
        network=("q_t",),
        live=("r_t", "discount_t"),
        oracle=lambda q_tm1, r_t, discount_t, q_t: r_t + discount_t * min(q_t) - q_tm1,
        any_shape=("q_t",),
    ),
}
