"""Off-policy returns: see test_losses.py."""

import numpy as np
import rlax

from rljax import losses

from .. import oracles
from .loss_case import Case


def action_values(q_t, a_t, r_t, discount_t, c_t, pi_t):
    q_a = np.array([q[a] for q, a in zip(q_t, a_t, strict=True)])
    v = np.array([np.dot(p, q) for p, q in zip(pi_t, q_t, strict=True)])
    return oracles.off_policy_returns(q_a[:-1], v, r_t, discount_t, c_t[:-1])


OFF_POLICY = {
    "q_t": "T,A:real",
    "a_t": "T:action",
    "r_t": "T:real",
    "discount_t": "T:discount",
    "c_t": "T:positive",
    "pi_t": "T,A:simplex",
}


CASES = {
    "general_off_policy_returns_from_q_and_v": Case(
        losses.general_off_policy_returns_from_q_and_v,
        {
            **{"q_t": "T:real", "v_t": "K:real", "r_t": "K:real"},
            **{"discount_t": "K:discount", "c_t": "T:lambda"},
        },
        network=("q_t", "v_t"),
        live=("r_t", "discount_t", "c_t"),
        oracle=lambda q_t, v_t, r_t, discount_t, c_t: oracles.off_policy_returns(
            q_t, v_t, r_t, discount_t, c_t
        ),
        rlax=rlax.general_off_policy_returns_from_q_and_v,
        rlax_stops=True,
    ),
    "general_off_policy_returns_from_action_values": Case(
        losses.general_off_policy_returns_from_action_values,
        OFF_POLICY,
        network=("q_t", "pi_t"),
        live=("r_t", "discount_t", "c_t"),
        oracle=action_values,
        rlax=rlax.general_off_policy_returns_from_action_values,
        rlax_stops=True,
    ),
}
