"""V-trace: see test_losses.py."""

import rlax
from rlax._src import multistep

from rljax import losses

from .. import oracles
from .cases_returns import LAMBDA, continuous, values
from .loss_case import Case


def rlax_importance(r_t, discount_t, rho_tm1, lambda_, v_tm1, v_t, **flag):
    return multistep.importance_corrected_td_errors(
        r_t, discount_t, rho_tm1, lambda_, values(v_tm1, v_t), **flag
    )


def errors_plus(out, x):
    return out + x["v_tm1"]


def output_plus(out, x):
    return out._replace(errors=out.errors + x["v_tm1"])


VTRACE = {
    "v_tm1": "T:real",
    "v_t": "T:real",
    "r_t": "T:real",
    "discount_t": "T:discount",
    "rho_tm1": "T:ratio",
}


CLIP, CLIP_PG = {"clip_rho_threshold": ":hyper"}, {"clip_pg_rho_threshold": ":hyper"}


CORRECTED = ("v_tm1", "v_t", "rho_tm1")


CASES = {
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
}
