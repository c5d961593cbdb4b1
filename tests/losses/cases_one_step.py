"""One-step temporal-difference errors: see test_losses.py."""

import numpy as np
import rlax

from rljax import losses

from .loss_case import Case


def soft_policy(q, temperature):
    p = np.exp(q / temperature)
    return p / p.sum()


def soft_value(q, temperature):
    """Expected value plus entropy, as Vieillard et al. (2020) write it."""
    pi = soft_policy(q, temperature)
    return sum(p * (x - temperature * np.log(p)) for p, x in zip(pi, q, strict=True))


def munchausen(
    r_t,
    discount_t,
    q_t,
    target_q_tm1,
    entropy_temperature,
    munchausen_coefficient,
    clip_value_min,
    a_tm1,
    q_tm1,
):
    log_pi = np.log(soft_policy(target_q_tm1, entropy_temperature)[a_tm1])
    bonus = min(max(entropy_temperature * log_pi, clip_value_min), 0.0)
    target = r_t + munchausen_coefficient * bonus
    target += discount_t * soft_value(q_t, entropy_temperature)
    return target - q_tm1[a_tm1]


STEP_V = {"v_tm1": ":real", "r_t": ":real", "discount_t": ":discount"}


STEP_Q = {
    **{"q_tm1": "A:real", "a_tm1": ":action"},
    **{"r_t": ":real", "discount_t": ":discount"},
}


LIVE = ("r_t", "discount_t")


CASES = {
    "td_learning": Case(
        losses.td_learning,
        STEP_V | {"v_t": ":real"},
        always=("v_tm1",),
        network=("v_t",),
        live=LIVE,
        oracle=lambda v_tm1, r_t, discount_t, v_t: r_t + discount_t * v_t - v_tm1,
        rlax=rlax.td_learning,
        rlax_stops=True,
    ),
    "q_learning": Case(
        losses.q_learning,
        STEP_Q | {"q_t": "A:real"},
        always=("q_tm1",),
        network=("q_t",),
        live=LIVE,
        oracle=lambda q_tm1, a_tm1, r_t, discount_t, q_t: (
            r_t + discount_t * max(q_t) - q_tm1[a_tm1]
        ),
        rlax=rlax.q_learning,
        rlax_stops=True,
    ),
    "double_q_learning": Case(
        losses.double_q_learning,
        STEP_Q | {"q_t_value": "A:real", "q_t_selector": "A:real"},
        always=("q_tm1",),
        network=("q_t_value",),
        live=LIVE,
        oracle=lambda q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector: (
            r_t + discount_t * q_t_value[np.argmax(q_t_selector)] - q_tm1[a_tm1]
        ),
        rlax=rlax.double_q_learning,
        rlax_stops=True,
    ),
    "sarsa": Case(
        losses.sarsa,
        STEP_Q | {"q_t": "A:real", "a_t": ":action"},
        always=("q_tm1",),
        network=("q_t",),
        live=LIVE,
        oracle=lambda q_tm1, a_tm1, r_t, discount_t, q_t, a_t: (
            r_t + discount_t * q_t[a_t] - q_tm1[a_tm1]
        ),
        rlax=rlax.sarsa,
        rlax_stops=True,
    ),
    "expected_sarsa": Case(
        losses.expected_sarsa,
        STEP_Q | {"q_t": "A:real", "probs_a_t": "A:simplex"},
        always=("q_tm1",),
        network=("q_t", "probs_a_t"),
        live=LIVE,
        oracle=lambda q_tm1, a_tm1, r_t, discount_t, q_t, probs_a_t: (
            r_t + discount_t * sum(probs_a_t * q_t) - q_tm1[a_tm1]
        ),
        rlax=rlax.expected_sarsa,
        rlax_stops=True,
    ),
    "persistent_q_learning": Case(
        losses.persistent_q_learning,
        # A kind of value whose greatest is not always that of the action drawn.
        STEP_Q | {"q_t": "A:log_probability", "action_gap_scale": ":hyper"},
        always=("q_tm1",),
        network=("q_t",),
        live=(*LIVE, "action_gap_scale"),
        oracle=lambda q_tm1, a_tm1, r_t, discount_t, q_t, action_gap_scale: (
            r_t
            + discount_t * (max(q_t) - action_gap_scale * (max(q_t) - q_t[a_tm1]))
            - q_tm1[a_tm1]
        ),
        rlax=rlax.persistent_q_learning,
        rlax_stops=True,
    ),
    "soft_q_learning": Case(
        losses.soft_q_learning,
        STEP_Q | {"q_t": "A:real", "entropy_temperature": ":hyper"},
        always=("q_tm1",),
        network=("q_t",),
        live=(*LIVE, "entropy_temperature"),
        oracle=lambda q_tm1, a_tm1, r_t, discount_t, q_t, entropy_temperature: (
            r_t + discount_t * soft_value(q_t, entropy_temperature) - q_tm1[a_tm1]
        ),
    ),
    "munchausen_q_learning": Case(
        losses.munchausen_q_learning,
        {
            **STEP_Q,
            **{"q_t": "A:real", "target_q_tm1": "A:real"},
            **{"entropy_temperature": ":hyper", "munchausen_coefficient": ":hyper"},
        },
        always=("q_tm1",),
        network=("q_t", "target_q_tm1"),
        live=(*LIVE, "entropy_temperature", "munchausen_coefficient"),
        static={"clip_value_min": -1.0},
        oracle=munchausen,
    ),
    "qv_learning": Case(
        losses.qv_learning,
        STEP_Q | {"v_t": ":real"},
        always=("q_tm1",),
        network=("v_t",),
        live=LIVE,
        oracle=lambda q_tm1, a_tm1, r_t, discount_t, v_t: (
            r_t + discount_t * v_t - q_tm1[a_tm1]
        ),
        rlax=rlax.qv_learning,
        rlax_stops=True,
        any_shape=("q_tm1",),
    ),
    "qv_max": Case(
        losses.qv_max,
        STEP_V | {"q_t": "A:real"},
        always=("v_tm1",),
        network=("q_t",),
        live=LIVE,
        oracle=lambda v_tm1, r_t, discount_t, q_t: r_t + discount_t * max(q_t) - v_tm1,
        rlax=rlax.qv_max,
        rlax_stops=True,
        any_shape=("q_t",),
    ),
}
