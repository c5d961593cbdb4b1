"""Losses of return distributions: see test_losses.py."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import rlax

from rljax.losses import distributional

from .loss_case import Case

# Definitions.


def softmax(logits):
    p = np.exp(logits - np.max(logits))
    return p / p.sum()


def cross_entropy(probs, logits):
    return -sum(p * np.log(q) for p, q in zip(probs, softmax(logits), strict=True))


def project(z_p, probs, z_q):
    """Bellemare et al. (2017): an atom is shared by the neighbours by its distances."""
    out = np.zeros(len(z_q))
    for z, p in zip(z_p, probs, strict=True):
        if z <= z_q[0]:
            out[0] += p
        elif z >= z_q[-1]:
            out[-1] += p
        else:
            u = next(i for i in range(len(z_q)) if z_q[i] > z)
            upper = (z - z_q[u - 1]) / (z_q[u] - z_q[u - 1])
            out[u - 1] += p * (1 - upper)
            out[u] += p * upper
    return out


def project_evenly(z_p, probs, v_min, v_max, num_atoms):
    """Bellemare et al. (2017), algorithm 1, without its loss of mass where l = u."""
    out, width = np.zeros(num_atoms), (v_max - v_min) / (num_atoms - 1)
    for z, p in zip(z_p, probs, strict=True):
        b = (min(max(z, v_min), v_max) - v_min) / width
        lower, upper = int(np.floor(b)), int(np.ceil(b))
        if lower == upper:
            out[lower] += p
        else:
            out[lower] += p * (upper - b)
            out[upper] += p * (b - lower)
    return out


def categorical_td(z_tm1, logits_tm1, r, discount, z_t, logits_t):
    target = project([r + discount * z for z in z_t], softmax(logits_t), z_tm1)
    return cross_entropy(target, logits_tm1)


def categorical_double_q(z_tm1, logits_tm1, a, r, discount, z_t, logits_t, selector):
    greedy = logits_t[np.argmax(selector)]
    return categorical_td(z_tm1, logits_tm1[a], r, discount, z_t, greedy)


def categorical_q(z_tm1, logits_tm1, a, r, discount, z_t, logits_t):
    means = [sum(z_t * softmax(row)) for row in logits_t]
    return categorical_double_q(z_tm1, logits_tm1, a, r, discount, z_t, logits_t, means)


def two_hot(logits, target, min_value, max_value):
    bins = np.linspace(min_value, max_value, len(logits))
    return cross_entropy(project([target], [1.0], bins), logits)


def quantile_regression(theta, tau, samples, kappa):
    """Dabney et al. (2018), QR-DQN, eq. 10, or eq. 8 if kappa is 0."""
    total = 0.0
    for value, t in zip(theta, tau, strict=True):
        for sample in samples:
            u = sample - value
            if abs(u) <= kappa:
                huber = u**2 / 2
            else:
                huber = kappa * (abs(u) - kappa / 2) if kappa else abs(u)
            total += abs(t - (u < 0)) * huber / len(samples)
    return total


def quantile_q(theta, tau, a, r, discount, selector, theta_t, kappa):
    best = np.argmax(selector.mean(0))
    samples = [r + discount * row[best] for row in theta_t]
    return quantile_regression(theta[:, a], tau, samples, kappa)


def quantile_sarsa(theta, tau, a, r, discount, theta_t, pi, kappa):
    return sum(
        p * quantile_regression(theta[:, a], tau, r + discount * column, kappa)
        for p, column in zip(pi, theta_t.T, strict=True)
    )


# What rlax needs.


def quiet(fn):
    """Its cross-entropy warns of its end."""

    def call(**x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            return fn(**x)

    return call


def spread(z):
    """Atoms not so close that float32 rounds them to different shares."""
    return z + 0.3 * jnp.arange(len(z))


def around(prefix):
    """Atoms around every one of the target's: else rlax's gradient of log(0) is NaN."""

    def rlax_input(x):
        z = spread(x[f"{prefix}_atoms_t"])
        target = jax.lax.stop_gradient(x["r_t"] + x["discount_t"] * z)
        between = (target[1:] + target[:-1]) / 2
        z_q = jnp.concatenate([target[:1] - 0.3, between, target[-1:] + 0.3])
        return x | {f"{prefix}_atoms_t": z, f"{prefix}_atoms_tm1": z_q}

    return rlax_input


def static_huber(x):
    return x | {"huber_param": 0.7}


def rlax_implicit(huber_param, **x):
    return rlax.quantile_q_learning(**x, huber_param=huber_param) / huber_param


TRANSITION = {"r_t": ":real", "discount_t": ":discount"}
CATEGORICAL_Q = {
    **{"q_atoms_tm1": "N:sorted", "q_logits_tm1": "A,N:real", "a_tm1": ":action"},
    **TRANSITION,
    **{"q_atoms_t": "M:sorted", "q_logits_t": "A,M:real"},
}
QUANTILE = {"dist_q_tm1": "N,A:real", "tau_q_tm1": "N:quantile", "a_tm1": ":action"}
PREDICTED = ("dist_q_tm1", "tau_q_tm1", "huber_param")
QUANTILE_Q = {
    **QUANTILE,
    **TRANSITION,
    **{"dist_q_t_selector": "K,A:real", "dist_q_t": "M,A:real"},
    "huber_param": ":hyper",
}

CASES = {
    "categorical_l2_project": Case(
        distributional.categorical_l2_project,
        {"z_p": "M:real", "probs": "M:simplex", "z_q": "N:sorted"},
        always=("z_p", "probs", "z_q"),
        stops=False,
        oracle=project,
        rlax=rlax.categorical_l2_project,
        rlax_input=lambda x: x | {"z_q": spread(x["z_q"])},
        any_shape=("z_q",),
    ),
    "categorical_td_learning": Case(
        distributional.categorical_td_learning,
        {
            **{"v_atoms_tm1": "N:sorted", "v_logits_tm1": "N:real"},
            **TRANSITION,
            **{"v_atoms_t": "M:sorted", "v_logits_t": "M:real"},
        },
        always=("v_logits_tm1",),
        network=("v_logits_t",),
        live=("v_atoms_tm1", "r_t", "discount_t", "v_atoms_t"),
        loss=True,
        oracle=lambda **x: categorical_td(*x.values()),
        rlax=quiet(rlax.categorical_td_learning),
        rlax_input=around("v"),
        rlax_stops=True,
    ),
    "categorical_q_learning": Case(
        distributional.categorical_q_learning,
        CATEGORICAL_Q,
        always=("q_logits_tm1",),
        network=("q_logits_t",),
        live=("q_atoms_tm1", "r_t", "discount_t", "q_atoms_t"),
        loss=True,
        oracle=lambda **x: categorical_q(*x.values()),
        rlax=quiet(rlax.categorical_q_learning),
        rlax_input=around("q"),
        rlax_stops=True,
    ),
    "categorical_double_q_learning": Case(
        distributional.categorical_double_q_learning,
        CATEGORICAL_Q | {"q_t_selector": "A:real"},
        always=("q_logits_tm1",),
        network=("q_logits_t",),
        live=("q_atoms_tm1", "r_t", "discount_t", "q_atoms_t"),
        loss=True,
        oracle=lambda **x: categorical_double_q(*x.values()),
        rlax=quiet(rlax.categorical_double_q_learning),
        rlax_input=around("q"),
        rlax_stops=True,
    ),
    "two_hot_loss": Case(
        distributional.two_hot_loss,
        {"logits": "N:real", "target": ":real"},
        always=("logits", "target"),
        static={"min_value": -2.0, "max_value": 1.5},
        stops=False,
        loss=True,
        oracle=two_hot,
        any_shape=("logits",),
    ),
    "quantile_regression_loss": Case(
        distributional.quantile_regression_loss,
        {
            **{"dist_src": "N:real", "tau_src": "N:quantile", "dist_target": "M:real"},
            "huber_param": ":hyper",
        },
        always=("dist_src", "tau_src", "huber_param"),
        live=("dist_target",),
        loss=True,
        oracle=lambda **x: quantile_regression(*x.values()),
        rlax=rlax.quantile_regression_loss,
        rlax_input=static_huber,
        any_shape=("dist_target",),
    ),
    "quantile_q_learning": Case(
        distributional.quantile_q_learning,
        QUANTILE_Q,
        always=PREDICTED,
        network=("dist_q_t",),
        live=("r_t", "discount_t"),
        loss=True,
        oracle=lambda **x: quantile_q(*x.values()),
        rlax=rlax.quantile_q_learning,
        rlax_input=static_huber,
        rlax_stops=True,
    ),
    "quantile_expected_sarsa": Case(
        distributional.quantile_expected_sarsa,
        {
            **QUANTILE,
            **TRANSITION,
            **{"dist_q_t": "M,A:real", "probs_a_t": "A:simplex"},
            "huber_param": ":hyper",
        },
        always=PREDICTED,
        network=("dist_q_t", "probs_a_t"),
        live=("r_t", "discount_t"),
        loss=True,
        oracle=lambda **x: quantile_sarsa(*x.values()),
        rlax=rlax.quantile_expected_sarsa,
        rlax_input=static_huber,
        rlax_stops=True,
    ),
    "implicit_quantile_q_learning": Case(
        distributional.implicit_quantile_q_learning,
        QUANTILE_Q,
        always=PREDICTED,
        network=("dist_q_t",),
        live=("r_t", "discount_t"),
        loss=True,
        oracle=lambda huber_param, **x: (
            quantile_q(*x.values(), huber_param) / huber_param
        ),
        rlax=rlax_implicit,
        rlax_input=static_huber,
        rlax_stops=True,
    ),
}
