"""What the losses must agree with: tabular MDPs in closed form, definitions as loops.

numpy float64 only, and nothing imported from rljax.
"""

import itertools
from typing import NamedTuple

import numpy as np


class MDP(NamedTuple):
    p: np.ndarray  # [S, A, S] transition probabilities
    r: np.ndarray  # [S, A] rewards
    gamma: float


def random_mdp(seed, num_states=4, num_actions=3, gamma=0.9):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(num_states), (num_states, num_actions))
    return MDP(p, rng.normal(size=(num_states, num_actions)), gamma)


def random_policy(seed, mdp):
    """`[S, A]` action probabilities."""
    num_states, num_actions = mdp.r.shape
    return np.random.default_rng(seed).dirichlet(np.ones(num_actions), num_states)


def policy_chain(mdp, policy):
    """`[S, S]` transition probabilities and `[S]` rewards under a policy."""
    p = np.einsum("sa,sat->st", policy, mdp.p)
    return p, np.einsum("sa,sa->s", policy, mdp.r)


def policy_value(mdp, policy):
    """`[S]` V = (I - gamma P)^-1 r."""
    p, r = policy_chain(mdp, policy)
    return np.linalg.solve(np.eye(len(r)) - mdp.gamma * p, r)


def action_value(mdp, v):
    """`[S, A]` r + gamma E v(s')."""
    return mdp.r + mdp.gamma * mdp.p @ v


def value_gamma_gradient(mdp, policy):
    """`[S]` dV/dgamma = (I - gamma P)^-1 P V."""
    p, _ = policy_chain(mdp, policy)
    a = np.eye(len(p)) - mdp.gamma * p
    return np.linalg.solve(a, p @ policy_value(mdp, policy))


def optimal_action_value(mdp):
    """`[S, A]` Q*, by value iteration until gamma^n < 1e-16."""
    q = np.zeros_like(mdp.r)
    for _ in range(int(np.log(1e-16) / np.log(mdp.gamma)) + 1):
        q = action_value(mdp, q.max(1))
    return q


def trajectories(mdp, policy, state, action, length):
    """Every trajectory from `(state, action)`: probability, states, actions.

    Returns `[N]`, `[N, length + 1]` and `[N, length]`.
    """
    num_states, num_actions = mdp.r.shape
    rows = []
    for actions in itertools.product(range(num_actions), repeat=length - 1):
        for successors in itertools.product(range(num_states), repeat=length):
            s, a = (state, *successors), (action, *actions)
            probability = 1.0
            for t in range(length):
                probability *= policy[s[t], a[t]] if t else 1.0
                probability *= mdp.p[s[t], a[t], s[t + 1]]
            rows.append((probability, s, a))
    return tuple(map(np.array, zip(*rows, strict=True)))


def gae(r, discount, v_tm1, v_t, lambda_):
    """`[T]` advantages as Schulman et al. (2015), eq. 16, defines them.

    A_t = sum_l (prod_{i<l} discount_{t+i} lambda_{t+i}) delta_{t+l}
    """
    adv = np.zeros(len(r))
    for t in range(len(r)):
        weight = 1.0
        for k in range(t, len(r)):
            adv[t] += weight * (r[k] + discount[k] * v_t[k] - v_tm1[k])
            weight *= discount[k] * lambda_[k]
    return adv


def n_step_return(r, discount, v_t, t, n):
    """Rewards of steps t .. t+n-1, then the last one's bootstrap."""
    g, weight = 0.0, 1.0
    for k in range(t, t + n):
        g += weight * r[k]
        weight *= discount[k]
    return g + weight * v_t[t + n - 1]


def lambda_returns(r, discount, v_t, lambda_):
    """`[T]` mixtures of n-step returns: Sutton and Barto (2018), eq. 12.3.

    The n-step return weighs (1 - lambda_{t+n-1}) prod_{i<n-1} lambda_{t+i}; the
    longest one has what is left.
    """
    g = np.zeros(len(r))
    for t in range(len(r)):
        left = 1.0
        for n in range(1, len(r) - t + 1):
            share = 1.0 if t + n == len(r) else 1.0 - lambda_[t + n - 1]
            g[t] += left * share * n_step_return(r, discount, v_t, t, n)
            left *= lambda_[t + n - 1]
    return g


def discounted_returns(r, discount, v_t):
    """`[T]` sums of discounted rewards and of the last value."""
    return np.array(
        [n_step_return(r, discount, v_t, t, len(r) - t) for t in range(len(r))]
    )


def n_step_returns(r, discount, v_t, n, lambda_):
    """`[T]` lambda-returns of the next n steps alone, by `lambda_returns`."""
    windows = [slice(t, t + n) for t in range(len(r))]
    return np.array(
        [lambda_returns(r[w], discount[w], v_t[w], lambda_[w])[0] for w in windows]
    )


def off_policy_returns(q, v, r, discount, c):
    """`[K]` returns: Munos et al. (2016), eq. 4, as the sum that it is.

    G_t = sum_k (prod_{t<=i<k} discount_i c_i) (r_k + discount_k (v_k - c_k q_k)),
    with nothing to correct after the last step.
    """
    length = len(r)
    q, c = np.append(q, 0.0), np.append(c, 0.0)
    g = np.zeros(length)
    for t in range(length):
        weight = 1.0
        for k in range(t, length):
            g[t] += weight * (r[k] + discount[k] * (v[k] - c[k] * q[k]))
            weight *= discount[k] * c[k]
    return g


def per_decision_errors(r, discount, rho, lambda_, v_tm1, v_t):
    """`[T]` errors corrected by products of ratios: Sutton et al. (2014).

    rho_t sum_k (prod_{t<i<=k} discount_{i-1} lambda_{i-1} rho_i) delta_k
    """
    errors = np.zeros(len(r))
    for t in range(len(r)):
        weight = rho[t]
        for k in range(t, len(r)):
            errors[t] += weight * (r[k] + discount[k] * v_t[k] - v_tm1[k])
            weight *= discount[k] * lambda_[k] * (rho[k + 1] if k + 1 < len(r) else 0.0)
    return errors


def vtrace(
    v_tm1,
    v_t,
    r,
    discount,
    rho,
    lambda_,
    clip_rho,
    clip_pg_rho,
    alpha=1.0,
    alpha_c=None,
):
    """Errors, advantages, action values: Espeholt et al. (2018), eq. 1 and 4.2.

    alpha < 1: the leaky ratios of Zahavy et al. (2020), those of the traces by alpha_c.
    The target of a step is the sum over later ones; an action's value takes the next
    step's target, from the value of the true successor.
    """
    length = len(r)
    alpha_c = alpha if alpha_c is None else alpha_c

    def ratio(t, threshold, alpha=alpha):
        return alpha * min(threshold, rho[t]) + (1 - alpha) * rho[t]

    errors = np.zeros(length + 1)
    for t in range(length):
        weight = 1.0
        for k in range(t, length):
            delta = r[k] + discount[k] * v_t[k] - v_tm1[k]
            errors[t] += weight * ratio(k, clip_rho) * delta
            weight *= discount[k] * lambda_[k] * ratio(k, 1.0, alpha_c)
    q = np.array(
        [
            r[t] + discount[t] * (v_t[t] + lambda_[t] * errors[t + 1])
            for t in range(length)
        ]
    )
    adv = np.array([ratio(t, clip_pg_rho) * (q[t] - v_tm1[t]) for t in range(length)])
    return errors[:-1], adv, q


def softmax(logits):
    x = np.exp(logits - logits.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def policy_gradient(mdp, logits, start):
    """`[S, A]` d/dlogits of start . V, without the policy-gradient theorem.

    V = (I - gamma P)^-1 r, so dV = (I - gamma P)^-1 (dr + gamma dP V).
    """
    return np.tensordot(start, value_derivatives(mdp, logits)[0], 1)


def policy_hessian(mdp, logits, start):
    """`[S, A, S, A]` second derivatives of start . V in the logits."""
    return np.tensordot(start, value_derivatives(mdp, logits)[1], 1)


def value_derivatives(mdp, logits):
    """`[S, S, A]` dV/dlogits and `[S, S, A, S, A]` d2V/dlogits2.

    With M = (I - gamma P)^-1: d_i V = M (d_i r + gamma d_i P V), and
    d_ij V = M (d_ij r + gamma (d_ij P V + d_i P d_j V + d_j P d_i V)).
    """
    policy, (num_states, num_actions) = softmax(logits), logits.shape
    p, r = policy_chain(mdp, policy)
    inverse = np.linalg.inv(np.eye(num_states) - mdp.gamma * p)
    v, eye = inverse @ r, np.eye(num_actions)
    first = np.zeros((num_states, num_states, num_actions))
    second = np.zeros((num_states,) + 2 * logits.shape)
    d_p = {}
    for s, a in np.ndindex(logits.shape):
        d_policy = np.zeros_like(policy)
        d_policy[s] = policy[s, a] * (eye[a] - policy[s])
        d_p[s, a], d_r = policy_chain(mdp, d_policy)
        first[:, s, a] = inverse @ (d_r + mdp.gamma * d_p[s, a] @ v)
    for s, a in np.ndindex(logits.shape):
        for t, b in np.ndindex(logits.shape):
            dd_policy = np.zeros_like(policy)
            if s == t:
                slope = policy[s, b] * (eye[b] - policy[s])  # of the policy in b
                dd_policy[s] = slope[a] * (eye[a] - policy[s]) - policy[s, a] * slope
            dd_p, dd_r = policy_chain(mdp, dd_policy)
            cross = d_p[s, a] @ first[:, t, b] + d_p[t, b] @ first[:, s, a]
            second[:, s, a, t, b] = inverse @ (dd_r + mdp.gamma * (dd_p @ v + cross))
    return first, second
