"""Measures rljax.autodiff against ordinary gradients, on whatever backend jax has here.

Both functions of a comparison are jitted functions of the same arrays, parameters and
batch included. They are timed in this process, in turns, and each call is waited for,
so that no two overlap; on an accelerator that counts the launch of a call too.

On CPU there is one jax device with jax's usual threads, one for each core: gradients
of a whole batch are products of large matrices, which more threads do speed up. In the
suite `speed`, of small programs, each core is a device of its own instead.
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from protocol import alternate, print_result, read_job, versions

from rljax import autodiff
from rljax.autodiff.per_transition import Method
from rljax.networks import QNetwork

NUM_ACTIONS = 6


class Inputs(NamedTuple):
    """What every function is a function of; jit drops what one does not use."""

    params: Any
    obs: Any  # [B, *obs_shape] bool for images, else float
    action: Any  # [B]
    target: Any  # [B]
    weights: Any  # [B]
    direction: Any  # a tree as params

    @property
    def batch(self) -> tuple[Any, ...]:
        """The transitions."""
        return self.obs, self.action, self.target


Function = Callable[[Inputs], Any]


def make(job: dict[str, Any]) -> tuple[QNetwork, Inputs]:
    """Returns the network of the job, and random inputs."""
    shape, size = tuple(job["obs_shape"]), job["batch"]
    network = QNetwork(len(shape), NUM_ACTIONS, tuple(job["hidden_sizes"]))
    rng = np.random.default_rng(job["seed"])  # jax would compile for seconds

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    obs = normal(size, *shape)
    if len(shape) == 3:  # MinAtar's planes are boolean and mostly empty
        obs = obs > 1.0
    like = jax.eval_shape(network.init, jax.random.key(0), obs)
    inputs = Inputs(
        params=jax.tree.map(lambda x: 0.05 * normal(*x.shape), like),
        obs=obs,
        action=rng.integers(NUM_ACTIONS, size=size, dtype=np.int32),
        target=normal(size),
        weights=rng.random(size, np.float32),
        direction=jax.tree.map(lambda x: normal(*x.shape), like),
    )
    return network, jax.tree.map(jnp.asarray, inputs)


def natural_gradient(values: Callable[..., Any], x: Inputs, gradient: Any) -> Any:
    """Returns the step of `agents/trpo.py`."""

    def policy(params: Any) -> distrax.Categorical:
        return distrax.Categorical(logits=values(params, x.obs[::4]))

    return autodiff.natural_gradient(
        lambda v: autodiff.fisher_vp(policy, x.params, v),
        gradient,
        damping=0.1,
        iterations=10,
    )


def functions(network: QNetwork) -> dict[str, Function]:
    """Returns what can be compared, by name."""

    def values(params: Any, obs: jax.Array) -> Any:
        return network.apply(params, obs)

    def value(params: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        return values(params, obs)[action]

    def loss(params: Any, transition: Any) -> jax.Array:
        obs, action, target = transition
        return 0.5 * (target - value(params, obs, action)) ** 2

    def mean_loss(x: Inputs, weights: Any = 1.0) -> Callable[[Any], jax.Array]:
        losses = jax.vmap(loss, (None, 0))
        return lambda params: jnp.mean(weights * losses(params, x.batch))

    def norms(method: Method) -> Function:
        return lambda x: autodiff.per_transition_grad_norms(
            loss, x.params, x.batch, method=method
        )

    def gauss_newton_vp(x: Inputs) -> Any:
        return autodiff.gauss_newton_vp(
            lambda params: jax.vmap(value, (None, 0, 0))(params, x.obs, x.action),
            lambda chosen: 0.5 * jnp.mean((x.target - chosen) ** 2),
            x.params,
            x.direction,
        )

    def fisher_vp(x: Inputs) -> Any:
        def policy(params: Any) -> distrax.Categorical:
            return distrax.Categorical(logits=values(params, x.obs))

        return autodiff.fisher_vp(policy, x.params, x.direction)

    one_pass = autodiff.value_and_grad_with_norms
    return {
        "grad": lambda x: jax.grad(mean_loss(x))(x.params),
        "value_and_grad": lambda x: jax.value_and_grad(mean_loss(x))(x.params),
        "value_and_grad weighted": lambda x: jax.value_and_grad(
            mean_loss(x, x.weights)
        )(x.params),
        "norms": norms("factored"),
        "norms vmap": norms("vmap"),
        "value_and_grad_with_norms": lambda x: one_pass(loss, x.params, x.batch),
        "value_and_grad_with_norms weighted": lambda x: one_pass(
            loss, x.params, x.batch, x.weights
        ),
        "hvp": lambda x: autodiff.hvp(mean_loss(x), x.params, x.direction),
        "gauss_newton_vp": gauss_newton_vp,
        "fisher_vp": fisher_vp,
        "natural_gradient": lambda x: natural_gradient(
            values, x, jax.grad(mean_loss(x))(x.params)
        ),
    }


def milliseconds(
    job: dict[str, Any], what: Function, against: Function, inputs: Inputs
) -> dict[str, float]:
    """Returns how long a call takes, and the ratio: the median over the rounds."""

    def call(function: Function) -> Callable[[], Any]:
        jitted = jax.jit(function)
        return lambda: jax.block_until_ready(jitted(inputs))

    pairs = alternate(call(what), call(against), job["rounds"], job["sample_s"])
    return {
        "ratio": statistics.median(a / b for a, b in pairs),
        "what_value": 1e3 * statistics.median(a for a, _ in pairs),
        "against_value": 1e3 * statistics.median(b for _, b in pairs),
    }


def megabytes(what: Function, against: Function, inputs: Inputs) -> dict[str, float]:
    """Returns the temporary memory of both, arguments and results left out."""

    def temporary(function: Function) -> float:
        compiled = jax.jit(function).lower(inputs).compile()
        analysis: Any = compiled.memory_analysis()
        return analysis.temp_size_in_bytes / 1e6

    a, b = temporary(what), temporary(against)
    return {"ratio": a / b, "what_value": a, "against_value": b}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Makes all comparisons of a job, a `Work` of ./autodiff.py."""
    network, inputs = make(job)
    known, found = functions(network), []
    for comparison in job["comparisons"]:
        pair = known[comparison["what"]], known[comparison["against"]]
        if job["unit"] == "MB":
            found.append(megabytes(*pair, inputs))
        else:
            found.append(milliseconds(job, *pair, inputs))
    device = jax.devices()[0]
    return {
        "measurements": found,
        "versions": versions("rljax", "flax", "jax", "jaxlib"),
        "device": "cpu" if device.platform == "cpu" else device.device_kind,
    }


def main():
    """Does the job this process was started with."""
    jax.config.update("jax_num_cpu_devices", 1)
    print_result(run(read_job()))


if __name__ == "__main__":
    main()
