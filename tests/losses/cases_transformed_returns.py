"""Returns in a transformed space: see test_losses.py."""

import numpy as np
import rlax

from rljax import losses

from .. import oracles
from .cases_off_policy_returns import OFF_POLICY, action_values
from .cases_returns import LAMBDA, TRAJECTORY
from .loss_case import Case


def h(x, eps=1e-3):
    """Pohlen et al. (2018), proposition A.2."""
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + eps * x


def h_inverse(y, eps=1e-3):
    root = np.sqrt(1 + 4 * eps * (np.abs(y) + 1 + eps))
    return np.sign(y) * (((root - 1) / (2 * eps)) ** 2 - 1)


def transformed(fn, names):
    """An rlax function that takes its arguments by position only."""

    def call(tx_pair, **x):
        args = [x.pop(name) for name in names.split()]
        return fn(tx_pair, *args, **x)

    return call


CASES = {
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
