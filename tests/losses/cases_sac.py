"""Losses of soft actor-critics: see test_losses.py."""

import numpy as np

from rljax import losses

from .cases_policy_gradient import TEMPERATURE, each_step, softmax
from .loss_case import Case


def soft_value(logits, q, temperature):
    return sum(
        p * (q_a - temperature * np.log(p))
        for p, q_a in zip(softmax(logits), q, strict=True)
    )


def sac(q_tm1, r_t, discount_t, q_t, log_prob_t, temperature):
    return r_t + discount_t * (min(q_t) - temperature * log_prob_t) - q_tm1


def sac_discrete(q_tm1, a_tm1, r_t, discount_t, q_t, logits_t, temperature):
    least = [min(q_a) for q_a in q_t.T]
    v_t = soft_value(logits_t, least, temperature)
    return r_t + discount_t * v_t - q_tm1[a_tm1]


TD = {"q_tm1": ":real", "r_t": ":real", "discount_t": ":discount"}


CASES = {
    "sac_learning": Case(
        losses.sac_learning,
        TD | {"q_t": "M:real", "log_prob_t": ":log_probability"} | TEMPERATURE,
        always=("q_tm1",),
        network=("q_t", "log_prob_t"),
        live=("r_t", "discount_t", "temperature"),
        oracle=sac,
        any_shape=("q_t",),
    ),
    "sac_actor_loss": Case(
        losses.sac_actor_loss,
        {"log_prob_t": "T:log_probability", "q_t": "T:real"} | TEMPERATURE,
        always=("log_prob_t", "q_t", "temperature"),
        stops=False,
        loss=True,
        oracle=each_step(
            lambda log_prob_t, q_t, temperature: temperature * log_prob_t - q_t
        ),
    ),
    "sac_discrete_learning": Case(
        losses.sac_discrete_learning,
        {
            **{"q_tm1": "A:real", "a_tm1": ":action", "r_t": ":real"},
            **{"discount_t": ":discount", "q_t": "M,A:real", "logits_t": "A:real"},
            **TEMPERATURE,
        },
        always=("q_tm1",),
        network=("q_t", "logits_t"),
        live=("r_t", "discount_t", "temperature"),
        oracle=sac_discrete,
    ),
    "sac_discrete_actor_loss": Case(
        losses.sac_discrete_actor_loss,
        {"logits_t": "A:real", "q_t": "A:real"} | TEMPERATURE,
        always=("logits_t", "temperature"),
        network=("q_t",),
        loss=True,
        oracle=lambda logits_t, q_t, temperature: (
            -soft_value(logits_t, q_t, temperature)
        ),
    ),
    "sac_temperature_loss": Case(
        losses.sac_temperature_loss,
        {
            **{"log_temperature": ":real", "log_prob_t": "T:log_probability"},
            **{"target_entropy": ":hyper"},
        },
        always=("log_temperature",),
        network=("log_prob_t",),
        live=("target_entropy",),
        loss=True,
        oracle=lambda log_temperature, log_prob_t, target_entropy: np.array(
            [-np.exp(log_temperature) * (x + target_entropy) for x in log_prob_t]
        ),
        any_shape=("log_prob_t",),
    ),
}
