"""V-trace: truncation, identities, masks."""

import chex
import numpy as np
import pytest
import rlax

from rljax import losses

from .. import oracles
from .cases_vtrace import CASES
from .loss_case import SIZES, draw_numpy, jitted

T = SIZES["T"]


def test_vtrace_bootstraps_a_truncated_step_from_its_true_successor():
    """The value acted in is 2, of the final observation 10, after the reset 1."""
    v_tm1, v_t = np.array([2.0, 1.0]), np.array([10.0, 1.0])
    args = (v_tm1, v_t, np.array([1.0, 0.1]), np.array([0.9, 0.9]), np.ones(2))
    lambda_t = np.array([0.0, 1.0])
    ours = jitted(losses.vtrace_td_error_and_advantage)(*args, lambda_t)
    theirs = jitted(rlax.vtrace_td_error_and_advantage)(*args, lambda_t)
    np.testing.assert_allclose(ours.pg_advantage, [8.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(theirs.pg_advantage[0], -0.1, 1e-5)
    np.testing.assert_allclose(ours.errors, theirs.errors, atol=1e-6)


def test_on_policy_vtrace_is_gae(x64):
    """Ratios of 1, whatever the clips; the advantage is one step of lambda-returns."""
    x = draw_numpy(CASES["vtrace_td_error_and_advantage"])
    x |= {"rho_tm1": np.ones(T), "clip_rho_threshold": 1.0}
    x |= {"clip_pg_rho_threshold": 2.0, "lambda_": np.full(T, 0.7)}
    x["v_t"] = np.append(x["v_tm1"][1:], x["v_t"][-1])
    out = jitted(losses.vtrace_td_error_and_advantage)(**x)
    adv_t = jitted(losses.generalized_advantage_estimation)(
        x["r_t"], x["discount_t"], x["v_tm1"], x["v_t"], x["lambda_"]
    )
    np.testing.assert_allclose(out.errors, adv_t, 1e-12)
    np.testing.assert_allclose(out.pg_advantage, adv_t, 1e-12)


def test_leaky_vtrace_at_alpha_zero_is_importance_sampling(x64):
    x = draw_numpy(CASES["leaky_vtrace"]) | {"alpha_": 0.0}
    x["v_t"] = np.append(x["v_tm1"][1:], x["v_t"][-1])
    names = ("r_t", "discount_t", "rho_tm1", "lambda_", "v_tm1", "v_t")
    importance = jitted(losses.importance_corrected_td_errors)
    expected = importance(*(x[name] for name in names))
    np.testing.assert_allclose(jitted(losses.leaky_vtrace)(**x), expected, 1e-12)


def test_traces_of_leaky_vtrace_leak_as_much_as_is_said(x64):
    """Beside the errors' own leak."""
    x = draw_numpy(CASES["leaky_vtrace_td_error_and_advantage"])
    leaky = jitted(losses.leaky_vtrace_td_error_and_advantage)
    out = leaky(**x, alpha_c=0.3)
    alpha = x.pop("alpha")
    want = oracles.vtrace(*x.values(), alpha=alpha, alpha_c=0.3)
    for got, wanted in zip(out, want, strict=True):
        np.testing.assert_allclose(got, wanted, 1e-10)
    assert not np.allclose(want[0], oracles.vtrace(*x.values(), alpha=alpha)[0])


MASK = np.array([True, False, True, True, False, True])


@pytest.mark.parametrize("stop", ["bootstrap", "target", "none"])
def test_vtrace_sample_mask_leaves_steps_out(stop, x64):
    """As if the others followed each other; all steps masked give no error."""
    x, leaky_vtrace = draw_numpy(CASES["leaky_vtrace"]), jitted(losses.leaky_vtrace)
    errors = leaky_vtrace(**x, stop=stop, sample_mask=MASK)
    short = {k: v[MASK] if v.ndim else v for k, v in x.items()}
    np.testing.assert_allclose(errors[MASK], leaky_vtrace(**short), 1e-12)
    nothing = leaky_vtrace(**x, stop=stop, sample_mask=np.zeros(T, bool))
    np.testing.assert_array_equal(nothing, 0.0)
    rlax_errors = jitted(rlax.leaky_vtrace)(**x, sample_mask=MASK)
    np.testing.assert_allclose(errors, rlax_errors, 1e-12)


def test_sample_mask_reaches_the_advantages(x64):
    x = draw_numpy(CASES["vtrace_td_error_and_advantage"])
    x["v_t"] = np.append(x["v_tm1"][1:], x["v_t"][-1])
    ours = jitted(losses.vtrace_td_error_and_advantage)(**x, sample_mask=MASK)
    theirs = jitted(rlax.vtrace_td_error_and_advantage)(**x, sample_mask=MASK)
    chex.assert_trees_all_close(tuple(ours), tuple(theirs))
    whole = jitted(losses.vtrace_td_error_and_advantage)(**x)
    assert not np.allclose(ours.pg_advantage, whole.pg_advantage)


@pytest.mark.parametrize("mask", [np.ones(T), np.ones(T - 1, bool)])
def test_sample_mask_is_checked(mask):
    with pytest.raises(AssertionError, match="sample_mask"):
        losses.vtrace(**draw_numpy(CASES["vtrace"]), sample_mask=mask)
