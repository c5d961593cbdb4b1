"""Transforms of values: see test_losses.py."""

import numpy as np
import rlax

from rljax.losses import transforms

from .loss_case import Case

BINS = {"min_value": -2.0, "max_value": 6.0, "num_bins": 5}  # rlax adds 1e-5 to a width


def elementwise(fn, oracle, rlax_fn, *hyperparameters):
    args = {"x": "T:real"} | {h: ":hyper" for h in hyperparameters}
    return Case(
        fn,
        args,
        always=tuple(args),
        stops=False,
        oracle=oracle,
        rlax=rlax_fn,
        any_shape=("x",),
    )


def signed_hyperbolic(x, eps):
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + eps * x


def signed_parabolic(x, eps):
    root = np.sqrt(1 + 4 * eps * (np.abs(x) + 1 + eps))
    return np.sign(x) * (((root - 1) / (2 * eps)) ** 2 - 1)


def power(x, p):
    return np.sign(x) * ((np.abs(x) / np.sqrt(p) + 1) ** p - 1) / np.sqrt(p)


def to_2hot(scalar, min_value, max_value, num_bins):
    """The hat functions of the bins."""
    bins = np.linspace(min_value, max_value, num_bins)
    width = bins[1] - bins[0]
    scalar = [min(max(x, min_value), max_value) for x in scalar]
    return np.array([[max(0.0, 1 - abs(x - z) / width) for z in bins] for x in scalar])


def from_2hot(probs, min_value, max_value, num_bins):
    bins = np.linspace(min_value, max_value, num_bins)
    return np.array(
        [sum(p * z for p, z in zip(row, bins, strict=True)) for row in probs]
    )


CASES = {
    "signed_logp1": elementwise(
        transforms.signed_logp1,
        lambda x: np.sign(x) * np.log(1 + np.abs(x)),
        rlax.signed_logp1,
    ),
    "signed_expm1": elementwise(
        transforms.signed_expm1,
        lambda x: np.sign(x) * (np.exp(np.abs(x)) - 1),
        rlax.signed_expm1,
    ),
    "signed_hyperbolic": elementwise(
        transforms.signed_hyperbolic, signed_hyperbolic, rlax.signed_hyperbolic, "eps"
    ),
    "signed_parabolic": elementwise(
        transforms.signed_parabolic, signed_parabolic, rlax.signed_parabolic, "eps"
    ),
    "power": elementwise(transforms.power, power, rlax.power, "p"),
    "transform_to_2hot": Case(
        transforms.transform_to_2hot,
        {"scalar": "T:real"},
        always=("scalar",),
        static=BINS,
        stops=False,
        oracle=to_2hot,
        rlax=rlax.transform_to_2hot,
        any_shape=("scalar",),
    ),
    "transform_from_2hot": Case(
        transforms.transform_from_2hot,
        {"probs": "T,N:simplex"},
        always=("probs",),
        static=BINS,
        stops=False,
        oracle=from_2hot,
        rlax=rlax.transform_from_2hot,
        any_shape=("probs",),
    ),
}
