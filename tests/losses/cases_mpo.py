"""MPO and V-MPO: see test_losses.py.

A dual variable enters twice: into its own loss, where it is learned, and into the other
losses, where it is a bootstrap. So every loss is called twice, as its docstring says,
with `old_` arguments for what is a bootstrap.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import rlax

from rljax.losses import mpo

from .loss_case import Case

SAMPLES = {
    "sample_log_probs": "N,T:real",
    "sample_q_values": "N,T:real",
}
EXAMPLES = {
    "sample_log_probs": "T:real",
    "advantages": "T:real",
    "restarting_weights": "T:probability",
    "importance_weights": "T:ratio",
}
TEMPERATURE = {"temperature": ":real", "epsilon": ":hyper"}
PENALTIES = {  # one of the divergence, one of the divergence per dimension
    **{"kl_0": "T:real", "alpha_0": ":real", "epsilon_0": ":hyper"},
    **{"kl_1": "T,D:real", "alpha_1": "D:real", "epsilon_1": ":hyper"},
}
LEARNED = (*TEMPERATURE, *PENALTIES)
OLD = {f"old_{k}": v for k, v in PENALTIES.items() if k[:3] != "eps"}
OLD_TEMPERATURE = {"old_temperature": ":real"}
DUALS = tuple(
    f"{old}{name}"
    for old in ("", "old_")
    for name in ("temperature", "alpha_0", "alpha_1")
)
PROJECTION = jax.nn.softplus


@contextlib.contextmanager
def named(x):
    """Names all arguments of the table where a loss refuses one of them."""
    try:
        yield
    except AssertionError as error:
        given = [f"{k} {jax.typeof(v).str_short()}" for k, v in x.items()]
        raise AssertionError(f"{error}: {', '.join(given)}") from error


def temperature(lib, x, old=""):
    return lib.LagrangePenalty(x[f"{old}temperature"], x["epsilon"])


def constraints(lib, x, old=""):
    def penalty(i, per_dimension):
        alpha = x[f"{old}alpha_{i}"]
        if lib is rlax:  # it would promote ranks
            alpha = jnp.broadcast_to(alpha, x[f"kl_{i}"].shape)
        return lib.LagrangePenalty(alpha, x[f"epsilon_{i}"], per_dimension)

    return [(x["kl_0"], penalty(0, False)), (x["kl_1"], penalty(1, True))]


def with_old_kl(x):
    return x | {k: x[f"old_{k}"] for k in ("kl_0", "kl_1")}


def loss_in_two_calls(lib, name, own, x, **options):
    """Policy and penalties with old duals, the duals with old penalties."""

    def parts(temperature, constraints):
        return getattr(lib, name)(
            *(*(x[k] for k in own), temperature, constraints, PROJECTION), **options
        )[1]

    with named(x):
        policy = parts(temperature(lib, x, "old_"), constraints(lib, x, "old_"))
        dual = parts(temperature(lib, x), constraints(lib, with_old_kl(x)))
    policy_loss = policy.policy_loss + policy.kl_loss
    return policy_loss, dual.temperature_loss, dual.alpha_loss


def mpo_loss(
    sample_log_probs,
    sample_q_values,
    temperature,
    epsilon,
    kl_0,
    alpha_0,
    epsilon_0,
    kl_1,
    alpha_1,
    epsilon_1,
    old_temperature,
    old_kl_0,
    old_alpha_0,
    old_kl_1,
    old_alpha_1,
    *,
    lib=mpo,
    **stop,
):
    x = {k: v for k, v in locals().items() if k not in ("lib", "stop")}
    return loss_in_two_calls(lib, "mpo_loss", SAMPLES, x, **stop)


def vmpo_loss(
    sample_log_probs,
    advantages,
    restarting_weights,
    importance_weights,
    temperature,
    epsilon,
    kl_0,
    alpha_0,
    epsilon_0,
    kl_1,
    alpha_1,
    epsilon_1,
    old_temperature,
    old_kl_0,
    old_alpha_0,
    old_kl_1,
    old_alpha_1,
    *,
    lib=mpo,
    **stop,
):
    x = {k: v for k, v in locals().items() if k not in ("lib", "stop")}
    own = ("sample_log_probs", "advantages")
    weights = {k: x[k] for k in ("restarting_weights", "importance_weights")}
    return loss_in_two_calls(lib, "vmpo_loss", own, x, **weights, **stop)


def mpo_weights(sample_q_values, temperature, epsilon, *, lib=mpo):
    x = {k: v for k, v in locals().items() if k != "lib"}
    penalty = lib.LagrangePenalty(temperature, epsilon)
    with named(x):
        return lib.mpo_compute_weights_and_temperature_loss(
            sample_q_values, penalty, PROJECTION
        )[:2]


def vmpo_weights(
    advantages,
    restarting_weights,
    importance_weights,
    temperature,
    epsilon,
    old_temperature,
    *,
    lib=mpo,
    **stop,
):
    x = {k: v for k, v in locals().items() if k not in ("lib", "stop")}

    def weigh(temperature):
        return lib.vmpo_compute_weights_and_temperature_loss(
            *(advantages, restarting_weights, importance_weights),
            *(lib.LagrangePenalty(temperature, epsilon), PROJECTION, 0.5),
            **stop,
        )

    with named(x):
        _, weights, num_samples = weigh(old_temperature)
        return weigh(temperature)[0], weights, num_samples


def penalties(
    kl_0,
    alpha_0,
    epsilon_0,
    kl_1,
    alpha_1,
    epsilon_1,
    old_kl_0,
    old_alpha_0,
    old_kl_1,
    old_alpha_1,
    *,
    lib=mpo,
    **stop,
):
    x = {k: v for k, v in locals().items() if k not in ("lib", "stop")}
    fn = lib.compute_parametric_kl_penalty_and_dual_loss
    if lib is rlax and stop:
        stop = {"use_stop_gradient": stop["stop_target_gradients"]}
    with named(x):
        kl_loss, _ = fn(constraints(lib, x, "old_"), PROJECTION, **stop)
        _, alpha_loss = fn(constraints(lib, with_old_kl(x)), PROJECTION, **stop)
    return kl_loss, alpha_loss


def of_rlax(fn):
    return lambda **x: fn(**x, lib=rlax)


def mild(x):
    """Restarting weights of 0 or 1, and sums to which rlax can add 1e-10."""
    restarting = (x["restarting_weights"] > 0.3).astype(jnp.float32)
    temperatures = {k: jnp.abs(v) for k, v in x.items() if "temperature" in k}
    return x | {"restarting_weights": restarting} | temperatures


# Oracles: loops, sums of exponentials as they are written.


def softplus(x):
    return np.log(1 + np.exp(x))


def numpy_mpo_weights(sample_q_values, temperature, epsilon):
    num_samples, length = sample_q_values.shape
    temperature = softplus(temperature)
    loss, weights = np.zeros(length), np.zeros((num_samples, length))
    for t in range(length):
        exponentials = np.exp(sample_q_values[:, t] / temperature)
        weights[:, t] = exponentials / exponentials.sum()
        loss[t] = temperature * (epsilon + np.log(exponentials.mean()))
    return loss, weights


def numpy_vmpo_weights(
    advantages,
    restarting_weights,
    importance_weights,
    temperature,
    epsilon,
    old_temperature,
):
    temperature, old_temperature = softplus(temperature), softplus(old_temperature)
    half = sorted(advantages, reverse=True)[: len(advantages) // 2]
    restarting = restarting_weights * [a in half for a in advantages]
    factors = restarting * importance_weights
    total = sum(factors * np.exp(advantages / temperature))
    loss = temperature * (epsilon + np.log(total / sum(restarting)))
    weights = factors * np.exp(advantages / old_temperature)
    return loss, weights / sum(weights), sum(restarting)


def numpy_penalties(**x):
    length = len(x["kl_0"])
    x |= {k: softplus(v) for k, v in x.items() if "alpha" in k}
    kl_loss, alpha_loss = np.zeros(length), np.zeros(length)
    for t in range(length):
        kl_loss[t] = x["old_alpha_0"] * x["kl_0"][t]
        alpha_loss[t] = x["alpha_0"] * (x["epsilon_0"] - x["old_kl_0"][t])
        for d in range(x["kl_1"].shape[1]):
            kl_loss[t] += x["old_alpha_1"][d] * x["kl_1"][t, d]
            excess = x["old_kl_1"][t, d] - x["epsilon_1"]
            alpha_loss[t] -= x["alpha_1"][d] * excess
    return kl_loss, alpha_loss


def of_penalties(x):
    return {k: v for k, v in x.items() if k in PENALTIES or k in OLD}


def numpy_mpo_loss(sample_log_probs, sample_q_values, **x):
    loss, _ = numpy_mpo_weights(sample_q_values, x["temperature"], x["epsilon"])
    _, weights = numpy_mpo_weights(sample_q_values, x["old_temperature"], 0.0)
    kl_loss, alpha_loss = numpy_penalties(**of_penalties(x))
    return kl_loss - (weights * sample_log_probs).sum(0), loss, alpha_loss


def numpy_vmpo_loss(sample_log_probs, **x):
    weighing = {k: v for k, v in x.items() if k not in of_penalties(x)}
    loss, weights, _ = numpy_vmpo_weights(**weighing)
    kl_loss, alpha_loss = numpy_penalties(**of_penalties(x))
    policy_loss = -len(weights) * weights * sample_log_probs
    return policy_loss + kl_loss, loss, alpha_loss


CASES = {
    "mpo_loss": Case(
        mpo_loss,
        SAMPLES | TEMPERATURE | PENALTIES | OLD_TEMPERATURE | OLD,
        always=("sample_log_probs", *LEARNED),
        network=("sample_q_values", *OLD_TEMPERATURE, *OLD),
        scalar=("alpha_1", "old_alpha_1"),
        broadcast=DUALS,
        loss=True,
        oracle=numpy_mpo_loss,
        rlax=of_rlax(mpo_loss),
    ),
    "mpo_compute_weights_and_temperature_loss": Case(
        mpo_weights,
        {"sample_q_values": "N,T:real"} | TEMPERATURE,
        always=("sample_q_values", *TEMPERATURE),
        stops=False,
        oracle=numpy_mpo_weights,
        rlax=of_rlax(mpo_weights),
        any_shape=("sample_q_values",),
        broadcast=DUALS,
    ),
    "compute_parametric_kl_penalty_and_dual_loss": Case(
        penalties,
        PENALTIES | OLD,
        always=tuple(PENALTIES),
        network=tuple(OLD),
        scalar=("alpha_1", "old_alpha_1"),
        broadcast=DUALS,
        loss=True,
        oracle=numpy_penalties,
        rlax=of_rlax(penalties),
        rlax_stops=True,
    ),
    "vmpo_loss": Case(
        vmpo_loss,
        EXAMPLES | TEMPERATURE | PENALTIES | OLD_TEMPERATURE | OLD,
        always=("sample_log_probs", *LEARNED),
        network=("importance_weights", *OLD_TEMPERATURE, *OLD),
        live=("advantages", "restarting_weights"),
        scalar=("alpha_1", "old_alpha_1"),
        broadcast=DUALS,
        loss=True,
        oracle=numpy_vmpo_loss,
        rlax=of_rlax(vmpo_loss),
        rlax_input=mild,
    ),
    "vmpo_compute_weights_and_temperature_loss": Case(
        vmpo_weights,
        {k: v for k, v in EXAMPLES.items() if k != "sample_log_probs"}
        | TEMPERATURE
        | OLD_TEMPERATURE,
        always=tuple(TEMPERATURE),
        network=("importance_weights", *OLD_TEMPERATURE),
        live=("advantages", "restarting_weights"),
        broadcast=DUALS,
        oracle=numpy_vmpo_weights,
        rlax=of_rlax(vmpo_weights),
        rlax_input=mild,
    ),
}
