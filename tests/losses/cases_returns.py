"""Returns and advantages: see test_losses.py."""

import jax.numpy as jnp
import numpy as np
import rlax

from rljax import losses

from .. import oracles
from .loss_case import Case


def continuous(x):
    """Without a truncation the next value is the next state's: rlax has no other."""
    return x | {"v_t": jnp.append(x["v_tm1"][1:], x["v_t"][-1:])}


def values(v_tm1, v_t):
    return jnp.append(v_tm1, v_t[-1:])


def rlax_gae(r_t, discount_t, v_tm1, v_t, lambda_t, **flag):
    return rlax.truncated_generalized_advantage_estimation(
        r_t, discount_t, lambda_t, values(v_tm1, v_t), **flag
    )


TRAJECTORY = {"r_t": "T:real", "discount_t": "T:discount", "v_t": "T:real"}


LAMBDA = {"lambda_": "T:lambda"}


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
}
