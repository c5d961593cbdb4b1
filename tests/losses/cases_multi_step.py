"""Multi-step temporal-difference errors: see test_losses.py."""

import jax
import jax.numpy as jnp
import numpy as np
import rlax

from rljax import losses

from .. import oracles
from .cases_one_step import LIVE
from .loss_case import Case

TX = {"tx_pair": losses.SIGNED_LOGP1_PAIR}


def h(x):
    """van Hasselt et al. (2019): the logarithm of both signs."""
    return np.sign(x) * np.log(np.abs(x) + 1)


def h_inverse(y):
    return np.sign(y) * (np.exp(np.abs(y)) - 1)


def at(q, a):
    """`[T]` values of the actions."""
    return np.array([row[i] for row, i in zip(q, a, strict=True)])


def expected(pi, q):
    return np.array([sum(p * x) for p, x in zip(pi, q, strict=True)])


def corrected(r, discount, v, q, c):
    """`[T]` of Munos et al. (2016), eq. 3: one-step targets plus traced TD errors."""
    targets = r + discount * v
    for t in range(len(r)):
        trace = 1.0
        for k in range(t + 1, len(r)):
            trace *= discount[k - 1] * c[k - 1]
            targets[t] += trace * (r[k] + discount[k] * v[k] - q[k - 1])
    return targets


def retrace_returns(q_t, a_t, r_t, discount_t, pi_t, mu_t, lambda_, eps):
    ratios = [p / (m + eps) for p, m in zip(at(pi_t, a_t), mu_t, strict=True)]
    c = [lam * min(1.0, ratio) for lam, ratio in zip(lambda_, ratios, strict=True)]
    return corrected(r_t, discount_t, expected(pi_t, q_t), at(q_t, a_t), c)


def tree_backup(q_tm1, a_tm1, r_t, discount_t, q_t, a_t, pi_t, lambda_):
    """Precup et al. (2000): leaves by their values, the action taken by its return."""
    g, v = np.zeros(len(r_t)), expected(pi_t, q_t)
    for t in reversed(range(len(r_t))):
        if t + 1 == len(r_t):
            backup = v[t]
        else:
            leaves = sum(
                p * q
                for a, (p, q) in enumerate(zip(pi_t[t], q_t[t], strict=True))
                if a != a_t[t]
            )
            tree = leaves + pi_t[t, a_t[t]] * g[t + 1]
            backup = (1 - lambda_[t]) * v[t] + lambda_[t] * tree
        g[t] = r_t[t] + discount_t[t] * backup
    return g - at(q_tm1, a_tm1)


def rlax_tree_backup(q_tm1, a_tm1, r_t, discount_t, q_t, a_t, pi_t, lambda_, **flag):
    c_t = lambda_ * jax.vmap(lambda p, a: p[a])(pi_t, a_t)
    target = rlax.general_off_policy_returns_from_action_values(
        q_t, a_t, r_t, discount_t, c_t, pi_t, **flag
    )
    return target - jax.vmap(lambda q, a: q[a])(q_tm1, a_tm1)


SEQUENCE_Q = {
    **{"q_tm1": "T,A:real", "a_tm1": "T:action"},
    **{"r_t": "T:real", "discount_t": "T:discount"},
}


RETRACE = {
    **{"q_tm1": "T,A:real", "q_t": "T,A:real"},
    **{"a_tm1": "T:action", "a_t": "T:action"},
    **{"r_t": "T:real", "discount_t": "T:discount"},
    **{"pi_t": "T,A:simplex", "mu_t": "T:probability"},
    **{"lambda_": "T:lambda", "eps": ":hyper"},
}


LAMBDA = {"lambda_": "T:lambda"}


CASES = {
    "td_lambda": Case(
        losses.td_lambda,
        {
            **{"v_tm1": "T:real", "r_t": "T:real", "discount_t": "T:discount"},
            **{"v_t": "T:real", **LAMBDA},
        },
        always=("v_tm1",),
        network=("v_t",),
        live=(*LIVE, "lambda_"),
        scalar=("lambda_",),
        oracle=lambda v_tm1, r_t, discount_t, v_t, lambda_: (
            oracles.lambda_returns(r_t, discount_t, v_t, lambda_) - v_tm1
        ),
        rlax=rlax.td_lambda,
        rlax_stops=True,
    ),
    "sarsa_lambda": Case(
        losses.sarsa_lambda,
        SEQUENCE_Q | {"q_t": "T,A:real", "a_t": "T:action"} | LAMBDA,
        always=("q_tm1",),
        network=("q_t",),
        live=(*LIVE, "lambda_"),
        scalar=("lambda_",),
        oracle=lambda q_tm1, a_tm1, r_t, discount_t, q_t, a_t, lambda_: (
            oracles.lambda_returns(r_t, discount_t, at(q_t, a_t), lambda_)
            - at(q_tm1, a_tm1)
        ),
        rlax=rlax.sarsa_lambda,
        rlax_stops=True,
    ),
    "q_lambda": Case(
        losses.q_lambda,
        SEQUENCE_Q | {"q_t": "T,A:real"} | LAMBDA,
        always=("q_tm1",),
        network=("q_t",),
        live=(*LIVE, "lambda_"),
        scalar=("lambda_",),
        oracle=lambda q_tm1, a_tm1, r_t, discount_t, q_t, lambda_: (
            oracles.lambda_returns(r_t, discount_t, q_t.max(1), lambda_)
            - at(q_tm1, a_tm1)
        ),
        rlax=rlax.q_lambda,
        rlax_stops=True,
    ),
    "tree_backup": Case(
        losses.tree_backup,
        {
            **SEQUENCE_Q,
            **{"q_t": "T,A:real", "a_t": "T:action", "pi_t": "T,A:simplex"},
            **LAMBDA,
        },
        always=("q_tm1",),
        network=("q_t", "pi_t"),
        live=(*LIVE, "lambda_"),
        scalar=("lambda_",),
        oracle=tree_backup,
        rlax=rlax_tree_backup,
        rlax_stops=True,
    ),
    "retrace": Case(
        losses.retrace,
        RETRACE,
        always=("q_tm1",),
        network=("q_t", "pi_t", "mu_t"),
        live=(*LIVE, "lambda_", "eps"),
        scalar=("lambda_",),
        oracle=lambda q_tm1, a_tm1, **x: retrace_returns(**x) - at(q_tm1, a_tm1),
        rlax=rlax.retrace,
        rlax_stops=True,
    ),
    "retrace_continuous": Case(
        losses.retrace_continuous,
        {
            **{"q_tm1": "K:real", "q_t": "T:real", "v_t": "K:real", "r_t": "K:real"},
            **{"discount_t": "K:discount", "log_rhos": "T:real", **LAMBDA},
        },
        always=("q_tm1",),
        network=("q_t", "v_t", "log_rhos"),
        live=(*LIVE, "lambda_"),
        scalar=("lambda_",),
        oracle=lambda q_tm1, q_t, v_t, r_t, discount_t, log_rhos, lambda_: (
            corrected(r_t, discount_t, v_t, q_t, lambda_ * np.exp(log_rhos).clip(max=1))
            - q_tm1
        ),
        rlax=rlax.retrace_continuous,
        rlax_stops=True,
    ),
    "transformed_q_lambda": Case(
        losses.transformed_q_lambda,
        SEQUENCE_Q | {"q_t": "T,A:real"} | LAMBDA,
        always=("q_tm1",),
        network=("q_t",),
        live=(*LIVE, "lambda_"),
        static=TX,
        scalar=("lambda_",),
        oracle=lambda q_tm1, a_tm1, r_t, discount_t, q_t, lambda_, tx_pair: (
            h(oracles.lambda_returns(r_t, discount_t, h_inverse(q_t.max(1)), lambda_))
            - at(q_tm1, a_tm1)
        ),
        rlax=rlax.transformed_q_lambda,
        rlax_stops=True,
    ),
    "transformed_retrace": Case(
        losses.transformed_retrace,
        RETRACE,
        always=("q_tm1",),
        network=("q_t", "pi_t", "mu_t"),
        live=(*LIVE, "lambda_", "eps"),
        static=TX,
        scalar=("lambda_",),
        oracle=lambda q_tm1, a_tm1, q_t, tx_pair, **x: (
            h(retrace_returns(h_inverse(q_t), **x)) - at(q_tm1, a_tm1)
        ),
        rlax=rlax.transformed_retrace,
        rlax_stops=True,
    ),
    "transformed_n_step_q_learning": Case(
        losses.transformed_n_step_q_learning,
        {
            **{"q_tm1": "T,A:real", "a_tm1": "T:action"},
            **{"target_q_t": "T,A:real", "a_t": "T:action"},
            **{"r_t": "T:real", "discount_t": "T:discount", "lambda_t": "T:lambda"},
        },
        always=("q_tm1",),
        network=("target_q_t",),
        live=(*LIVE, "lambda_t"),
        static={**TX, "n": 3},
        scalar=("lambda_t",),
        oracle=lambda q_tm1, a_tm1, target_q_t, a_t, r_t, discount_t, lambda_t, **s: (
            h(
                oracles.n_step_returns(
                    r_t, discount_t, h_inverse(at(target_q_t, a_t)), s["n"], lambda_t
                )
            )
            - at(q_tm1, a_tm1)
        ),
        rlax=lambda lambda_t, **x: rlax.transformed_n_step_q_learning(**x),
        rlax_input=lambda x: x | {"lambda_t": jnp.ones_like(x["lambda_t"])},
        rlax_stops=True,
    ),
}
