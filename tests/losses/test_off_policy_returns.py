"""Off-policy returns: exact values of tabular MDPs."""

import jax
import numpy as np
import pytest

from rljax import losses

from .cases_off_policy_returns import CASES
from .loss_case import SIZES, draw_numpy, rollouts

T = SIZES["T"]


@pytest.mark.parametrize("length", [T - 1, T + 1])
def test_traces_are_one_shorter_than_rewards(length):
    x = draw_numpy(CASES["general_off_policy_returns_from_q_and_v"])
    x = x | dict.fromkeys(("q_t", "c_t"), np.ones(length, np.float32))
    with pytest.raises(AssertionError, match=r"^v_t: expected the shape .*q_t\[K-1\]"):
        losses.general_off_policy_returns_from_q_and_v(**x)


@jax.jit
def first_off_policy_returns(q_t, a_t, r_t, discount_t, c_t, pi_t):
    """Returns of the first step of every row `[S * A, N, length]`."""

    def first_return(q_t, a_t, r_t, c_t, pi_t):
        return losses.general_off_policy_returns_from_action_values(
            q_t, a_t, r_t, discount_t, c_t, pi_t
        )[0]

    return jax.vmap(jax.vmap(first_return))(q_t, a_t, r_t, c_t, pi_t)


@pytest.mark.parametrize("trace", ["retrace", "importance", "tree backup", "q lambda"])
def test_expected_off_policy_return_is_the_action_value(trace, x64):
    """From another policy's trajectories, with the true values of this one."""
    mdp, policy, mu, _, q, weights, states, actions = rollouts(2, policy_seed=5)
    between = states[..., 1:-1], actions[..., 1:]
    pi_a, mu_a = policy[between], mu[between]
    c_t = {
        "retrace": 0.9 * np.minimum(1.0, pi_a / mu_a),
        "importance": pi_a / mu_a,
        "tree backup": 0.9 * pi_a,
        "q lambda": np.full_like(pi_a, 0.3),
    }[trace]
    last = np.zeros((*actions.shape[:-1], 1))  # neither an action nor a trace
    g = first_off_policy_returns(
        q_t=q[states[..., 1:]],
        a_t=np.append(actions[..., 1:], last.astype(int), axis=-1),
        r_t=mdp.r[states[..., :-1], actions],
        discount_t=np.full(actions.shape[-1], mdp.gamma),
        c_t=np.append(c_t, last, axis=-1),
        pi_t=policy[states[..., 1:]],
    )
    np.testing.assert_allclose((weights * g).sum(1), q.ravel(), 1e-10)
