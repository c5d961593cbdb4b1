"""Losses of policies: see test_losses.py."""

import warnings

import jax.numpy as jnp
import numpy as np
import rlax

from rljax import losses

from .loss_case import Case


def softmax(logits):
    e = np.exp(logits - np.max(logits))
    return e / e.sum()


def each_step(f):
    """`[T]` of `f` at every step of its arguments; scalars are the same for all."""

    def oracle(**x):
        return np.array(
            [
                f(**{k: v[t] if np.ndim(v) else v for k, v in x.items()})
                for t in range(len(next(iter(x.values()))))
            ]
        )

    return oracle


def in_rlax(f):
    """Its flag under one name for all; it warns that its distributions are old."""

    def call(*, stop_target_gradients=None, **x):
        flag = stop_target_gradients
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            return f(**x) if flag is None else f(**x, use_stop_gradient=flag)

    return call


def policy_gradient(logits_t, a_t, adv_t, w_t):
    return -np.log(softmax(logits_t)[a_t]) * adv_t * w_t


def entropy(logits_t):
    return -sum(p * np.log(p) for p in softmax(logits_t))


def kl_divergence(p, q):
    return sum(p_a * np.log(p_a / q_a) for p_a, q_a in zip(p, q, strict=True))


def regrets(pi, q):
    v = sum(p_a * q_a for p_a, q_a in zip(pi, q, strict=True))
    return np.array([max(q_a - v, 0.0) for q_a in q])


def clipped_surrogate(prob_ratios_t, adv_t, epsilon):
    clipped = min(max(prob_ratios_t, 1 - epsilon), 1 + epsilon)
    return -min(prob_ratios_t * adv_t, clipped * adv_t)


def clipped_value(v_t, v_old_t, target_t, epsilon):
    clipped = min(max(v_t, v_old_t - epsilon), v_old_t + epsilon)
    return 0.5 * max((v_t - target_t) ** 2, (clipped - target_t) ** 2)


def awr(log_prob_t, adv_t, temperature, max_weight):
    return -min(np.exp(adv_t / temperature), max_weight) * log_prob_t


LOGITS, W = {"logits_t": "T,A:real"}, {"w_t": "T:hyper"}


ALL_ACTIONS = LOGITS | {"q_t": "T,A:real"}


TEMPERATURE = {"temperature": ":hyper"}


CASES = {
    "policy_gradient_loss": Case(
        losses.policy_gradient_loss,
        LOGITS | {"a_t": "T:action", "adv_t": "T:real"} | W,
        always=("logits_t", "w_t"),
        live=("adv_t",),
        scalar=("w_t",),
        loss=True,
        oracle=each_step(policy_gradient),
        rlax=in_rlax(rlax.policy_gradient_loss),
        as_rlax=jnp.mean,
        rlax_stops=True,
    ),
    "entropy_loss": Case(
        losses.entropy_loss,
        LOGITS | W,
        always=("logits_t", "w_t"),
        scalar=("w_t",),
        stops=False,
        loss=True,
        oracle=each_step(lambda logits_t, w_t: -entropy(logits_t) * w_t),
        rlax=in_rlax(rlax.entropy_loss),
        as_rlax=jnp.mean,
    ),
    "clipped_surrogate_pg_loss": Case(
        losses.clipped_surrogate_pg_loss,
        {"prob_ratios_t": "T:ratio", "adv_t": "T:real", "epsilon": "T:positive"},
        always=("prob_ratios_t", "epsilon"),
        live=("adv_t",),
        scalar=("epsilon",),
        loss=True,
        oracle=each_step(clipped_surrogate),
        rlax=in_rlax(rlax.clipped_surrogate_pg_loss),
        as_rlax=jnp.mean,
        rlax_stops=True,
    ),
    "clipped_value_loss": Case(
        losses.clipped_value_loss,
        {
            **{"v_t": "T:real", "v_old_t": "T:real", "target_t": "T:real"},
            **{"epsilon": "T:positive"},
        },
        always=("v_t", "v_old_t", "target_t", "epsilon"),
        scalar=("epsilon",),
        stops=False,
        loss=True,
        oracle=each_step(clipped_value),
    ),
    "kl_penalty_loss": Case(
        losses.kl_penalty_loss,
        LOGITS | {"old_logits_t": "T,A:real"} | W,
        always=("logits_t", "old_logits_t", "w_t"),
        scalar=("w_t",),
        stops=False,
        loss=True,
        oracle=each_step(
            lambda logits_t, old_logits_t, w_t: (
                w_t * kl_divergence(softmax(old_logits_t), softmax(logits_t))
            )
        ),
    ),
    "qpg_loss": Case(
        losses.qpg_loss,
        ALL_ACTIONS,
        always=("logits_t",),
        network=("q_t",),
        loss=True,
        oracle=each_step(lambda logits_t, q_t: -np.dot(softmax(logits_t), q_t)),
    ),
    "rm_loss": Case(
        losses.rm_loss,
        ALL_ACTIONS,
        always=("logits_t",),
        network=("q_t",),
        loss=True,
        oracle=each_step(
            lambda logits_t, q_t: (
                -np.dot(softmax(logits_t), regrets(softmax(logits_t), q_t))
            )
        ),
        rlax=in_rlax(rlax.rm_loss),
        as_rlax=jnp.mean,
        smooth=False,  # the policy within the regrets: see test_policy.py
    ),
    "rpg_loss": Case(
        losses.rpg_loss,
        ALL_ACTIONS,
        always=("logits_t",),
        network=("q_t",),
        loss=True,
        oracle=each_step(
            lambda logits_t, q_t: sum(regrets(softmax(logits_t), q_t)),
        ),
        rlax=in_rlax(rlax.rpg_loss),
        as_rlax=jnp.mean,
        rlax_stops=True,
    ),
    "policy_distillation_loss": Case(
        losses.policy_distillation_loss,
        LOGITS | {"teacher_logits_t": "T,A:real"} | TEMPERATURE,
        always=("logits_t", "teacher_logits_t", "temperature"),
        stops=False,
        loss=True,
        oracle=each_step(
            lambda logits_t, teacher_logits_t, temperature: kl_divergence(
                softmax(teacher_logits_t / temperature), softmax(logits_t)
            )
        ),
    ),
    "awr_loss": Case(
        losses.awr_loss,
        {
            **{"log_prob_t": "T:log_probability", "adv_t": "T:real"},
            **{"temperature": ":hyper", "max_weight": ":hyper"},
        },
        always=("log_prob_t",),
        live=("adv_t", "temperature", "max_weight"),
        loss=True,
        oracle=each_step(awr),
    ),
}
