"""Measures rljax.autodiff against ordinary gradients, on whatever backend jax has here.

Both functions of a comparison are functions of the same arrays, parameters and batch
included.

On CPU there is one jax device with jax's usual threads, one for each core: gradients
of a whole batch are products of large matrices, which more threads do speed up. In the
suite `speed`, of small programs, each core is a device of its own instead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from measuring import compare
from protocol import print_result, read_job

from rljax import autodiff
from rljax.autodiff.per_transition import NormMethod
from rljax.networks import Body, QNetwork
from rljax.types import ObsSpec

NUM_ACTIONS = 6


class Inputs(NamedTuple):
    """Arguments of every function; jit drops those that a function does not use."""

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
    dtype = "bool" if len(shape) == 3 else "float32"
    body = Body(
        obs=ObsSpec.array(shape, dtype),
        hidden_sizes=tuple(job["hidden_sizes"]),
        activation="relu",
    )
    network = QNetwork(body=body, num_actions=NUM_ACTIONS)
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

    def norms(method: NormMethod) -> Function:
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


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Makes all comparisons of a job, a `Work` of ./autodiff.py."""
    network, inputs = make(job)
    known = functions(network)
    return compare(job, lambda name: (known[name], (inputs,)))


def main():
    """Does the job this process was started with."""
    jax.config.update("jax_num_cpu_devices", 1)
    print_result(run(read_job()))


if __name__ == "__main__":
    main()
