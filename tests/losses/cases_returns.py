"""Returns, off-policy returns, V-trace and transformed returns: see test_losses.py."""

import jax.numpy as jnp
import numpy as np
import rlax
from rlax._src import multistep

from rljax import losses

from .. import oracles
from .loss_case import Case


def h(x, eps=1e-3):
    """Pohlen et al. (2018), proposition A.2."""
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + eps * x


def h_inverse(y, eps=1e-3):
    root = np.sqrt(1 + 4 * eps * (np.abs(y) + 1 + eps))
    return np.sign(y) * (((root - 1) / (2 * eps)) ** 2 - 1)


def continuous(x):
    """Without a truncation the next value is the next state's: rlax has no other."""
    return x | {"v_t": jnp.append(x["v_tm1"][1:], x["v_t"][-1:])}


def values(v_tm1, v_t):
    return jnp.append(v_tm1, v_t[-1:])


def rlax_gae(r_t, discount_t, v_tm1, v_t, lambda_t, **flag):
    return rlax.truncated_generalized_advantage_estimation(
        r_t, discount_t, lambda_t, values(v_tm1, v_t), **flag
    )


def rlax_importance(r_t, discount_t, rho_tm1, lambda_, v_tm1, v_t, **flag):
    return multistep.importance_corrected_td_errors(
        r_t, discount_t, rho_tm1, lambda_, values(v_tm1, v_t), **flag
    )


def transformed(fn, names):
    """An rlax function that takes its arguments by position only."""

    def call(tx_pair, **x):
        args = [x.pop(name) for name in names.split()]
        return fn(tx_pair, *args, **x)

    return call


def action_values(q_t, a_t, r_t, discount_t, c_t, pi_t):
    q_a = np.array([q[a] for q, a in zip(q_t, a_t, strict=True)])
    v = np.array([np.dot(p, q) for p, q in zip(pi_t, q_t, strict=True)])
    return oracles.off_policy_returns(q_a[:-1], v, r_t, discount_t, c_t[:-1])


def errors_plus(out, x):
    return out + x["v_tm1"]


def output_plus(out, x):
    return out._replace(errors=out.errors + x["v_tm1"])


TRAJECTORY = {"r_t": "T:real", "discount_t": "T:discount", "v_t": "T:real"}
OFF_POLICY = {
    "q_t": "T,A:real",
    "a_t": "T:action",
    "r_t": "T:real",
    "discount_t": "T:discount",
    "c_t": "T:positive",
    "pi_t": "T,A:simplex",
}
VTRACE = {
    "v_tm1": "T:real",
    "v_t": "T:real",
    "r_t": "T:real",
    "discount_t": "T:discount",
    "rho_tm1": "T:ratio",
}
LAMBDA = {"lambda_": "T:lambda"}
CLIP, CLIP_PG = {"clip_rho_threshold": ":hyper"}, {"clip_pg_rho_threshold": ":hyper"}
CORRECTED = ("v_tm1", "v_t", "rho_tm1")

CASES = {
    "discounted_returns": Case(
        losses.discounted_returns,
        TRAJECTORY | {"v_t": ":real"},
        network=("v_t",),
        live=("r_t", "discount_t"),
        oracle=lambda r_t, discount_t, v_t: oracles.discounted_returns(
            r_t, discount_t, np.full(len(r_t), v_t)
        ),
        rlax=rlax.discounted_returns,
        rlax_stops=True,
    ),
    "n_step_bootstrapped_returns": Case(
        losses.n_step_bootstrapped_returns,
        TRAJECTORY | {"lambda_t": "T:lambda"},
        network=("v_t",),
        live=("r_t", "discount_t", "lambda_t"),
        static={"n": 3},
        scalar=("lambda_t",),
        oracle=lambda r_t, discount_t, v_t, lambda_t, n: oracles.n_step_returns(
            r_t, discount_t, v_t, n, lambda_t
        ),
        rlax=rlax.n_step_bootstrapped_returns,
        rlax_stops=True,
    ),
    "lambda_returns": Case(
        losses.lambda_returns,
        TRAJECTORY | LAMBDA,
        network=("v_t",),
        live=("r_t", "discount_t", "lambda_"),
        scalar=("lambda_",),
        oracle=lambda r_t, discount_t, v_t, lambda_: oracles.lambda_returns(
            r_t, discount_t, v_t, lambda_
        ),
        rlax=rlax.lambda_returns,
        rlax_stops=True,
    ),
    "generalized_advantage_estimation": Case(
        losses.generalized_advantage_estimation,
        {
            **{"r_t": "T:real", "discount_t": "T:discount"},
            **{"v_tm1": "T:real", "v_t": "T:real", "lambda_t": "T:lambda"},
        },
        network=("v_tm1", "v_t"),
        live=("r_t", "discount_t", "lambda_t"),
        scalar=("lambda_t",),
        oracle=lambda r_t, discount_t, v_tm1, v_t, lambda_t: oracles.gae(
            r_t, discount_t, v_tm1, v_t, lambda_t
        ),
        rlax=rlax_gae,
        rlax_input=continuous,
        rlax_stops=True,
    ),
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
    "importance_corrected_td_errors": Case(
        losses.importance_corrected_td_errors,
        {
            **{"r_t": "T:real", "discount_t": "T:discount", "rho_tm1": "T:ratio"},
            **{"lambda_": "T:lambda", "v_tm1": "T:real", "v_t": "T:real"},
        },
        network=CORRECTED,
        live=("r_t", "discount_t", "lambda_"),
        scalar=("lambda_",),
        target=errors_plus,
        oracle=lambda r_t, discount_t, rho_tm1, lambda_, v_tm1, v_t: (
            oracles.per_decision_errors(r_t, discount_t, rho_tm1, lambda_, v_tm1, v_t)
        ),
        rlax=rlax_importance,
        rlax_input=continuous,
        rlax_stops=True,
    ),
    "vtrace": Case(
        losses.vtrace,
        VTRACE | LAMBDA | CLIP,
        network=CORRECTED,
        live=("r_t", "discount_t", "lambda_", "clip_rho_threshold"),
        scalar=("lambda_",),
        target=errors_plus,
        oracle=lambda **x: oracles.vtrace(*x.values(), 1.0)[0],
        rlax=rlax.vtrace,
        rlax_stops=True,
    ),
    "leaky_vtrace": Case(
        losses.leaky_vtrace,
        VTRACE | {"alpha_": ":hyper"} | LAMBDA | CLIP,
        network=CORRECTED,
        live=("r_t", "discount_t", "alpha_", "lambda_", "clip_rho_threshold"),
        scalar=("lambda_",),
        target=errors_plus,
        oracle=lambda alpha_, **x: oracles.vtrace(*x.values(), 1.0, alpha_)[0],
        rlax=rlax.leaky_vtrace,
        rlax_stops=True,
    ),
    "vtrace_td_error_and_advantage": Case(
        losses.vtrace_td_error_and_advantage,
        VTRACE | LAMBDA | CLIP | CLIP_PG,
        network=CORRECTED,
        live=("r_t", "discount_t", "lambda_", *CLIP, *CLIP_PG),
        scalar=("lambda_",),
        target=output_plus,
        oracle=lambda **x: oracles.vtrace(*x.values()),
        rlax=rlax.vtrace_td_error_and_advantage,
        rlax_input=continuous,
    ),
    "leaky_vtrace_td_error_and_advantage": Case(
        losses.leaky_vtrace_td_error_and_advantage,
        VTRACE | {"alpha": ":hyper"} | LAMBDA | CLIP | CLIP_PG,
        network=CORRECTED,
        live=("r_t", "discount_t", "alpha", "lambda_", *CLIP, *CLIP_PG),
        scalar=("lambda_",),
        target=output_plus,
        oracle=lambda alpha, **x: oracles.vtrace(*x.values(), alpha),
        rlax=rlax.leaky_vtrace_td_error_and_advantage,
        rlax_input=continuous,
    ),
    "transformed_lambda_returns": Case(
        losses.transformed_lambda_returns,
        TRAJECTORY | LAMBDA,
        network=("v_t",),
        live=("r_t", "discount_t", "lambda_"),
        static={"tx_pair": losses.SIGNED_HYPERBOLIC_PAIR},
        scalar=("lambda_",),
        oracle=lambda r_t, discount_t, v_t, lambda_, tx_pair: h(
            oracles.lambda_returns(r_t, discount_t, h_inverse(v_t), lambda_)
        ),
        rlax=transformed(rlax.transformed_lambda_returns, "r_t discount_t v_t lambda_"),
        rlax_stops=True,
    ),
    "transformed_n_step_returns": Case(
        losses.transformed_n_step_returns,
        TRAJECTORY | {"lambda_t": "T:lambda"},
        network=("v_t",),
        live=("r_t", "discount_t", "lambda_t"),
        static={"tx_pair": losses.SIGNED_HYPERBOLIC_PAIR, "n": 3},
        scalar=("lambda_t",),
        oracle=lambda r_t, discount_t, v_t, lambda_t, tx_pair, n: h(
            oracles.n_step_returns(r_t, discount_t, h_inverse(v_t), n, lambda_t)
        ),
        rlax=transformed(
            rlax.transformed_n_step_returns, "r_t discount_t v_t n lambda_t"
        ),
        rlax_stops=True,
    ),
    "transformed_general_off_policy_returns_from_action_values": Case(
        losses.transformed_general_off_policy_returns_from_action_values,
        OFF_POLICY,
        network=("q_t", "pi_t"),
        live=("r_t", "discount_t", "c_t"),
        static={"tx_pair": losses.SIGNED_HYPERBOLIC_PAIR},
        oracle=lambda q_t, tx_pair, **x: h(action_values(h_inverse(q_t), **x)),
        rlax=transformed(
            rlax.transformed_general_off_policy_returns_from_action_values,
            "q_t a_t r_t discount_t c_t pi_t",
        ),
        rlax_stops=True,
    ),
}
