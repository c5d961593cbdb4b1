"""Gradient TD: see test_losses.py."""

from rljax import losses

from .cases_one_step import LIVE, STEP_V
from .loss_case import Case


def gradient_td_loss(
    v_tm1, r_t, discount_t, v_t, h_tm1, target_v_tm1, target_v_t, target_h_tm1, method
):
    td = r_t + discount_t * target_v_t - target_v_tm1
    rules = {  # minus the inner product of the outputs and their update
        "tdc": -td * v_tm1 + discount_t * target_h_tm1 * v_t,
        "gtd2": -target_h_tm1 * (v_tm1 - discount_t * v_t),
    }
    return rules[method] + 0.5 * (td - h_tm1) ** 2


CASES = {
    "gradient_td_loss": Case(
        losses.gradient_td_loss,
        {
            **STEP_V,
            **{"v_t": ":real", "h_tm1": ":real", "target_v_tm1": ":real"},
            **{"target_v_t": ":real", "target_h_tm1": ":real"},
        },
        always=("v_tm1", "v_t", "h_tm1"),
        network=("target_v_tm1", "target_v_t", "target_h_tm1"),
        live=LIVE,
        static={"method": "tdc"},
        loss=True,
        oracle=gradient_td_loss,
    ),
}
