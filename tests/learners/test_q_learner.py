"""A head gets what the learner makes of a transition."""

from types import SimpleNamespace

import jax
import numpy as np

from rljax.learners import q_learner
from rljax.replay import Windows


class Scale:
    """A network that multiplies by its parameter."""

    def init(self, key, *inputs):
        del key, inputs
        return {"params": {"scale": 1.0}}

    def apply(self, params, *inputs):
        return params["params"]["scale"] * inputs[0]


def test_a_head_gets_the_transition_of_n_steps():
    config = SimpleNamespace(gamma=0.5, priority="uniform")
    window = Windows(
        obs=np.float32([3.0]),
        action=np.int32(1),
        reward=np.float32([1.0, 2.0, 0.0]),
        num_steps=np.int32(2),
        terminated=np.array(False),
        next_obs=np.float32([7.0]),
    )
    key, got = jax.random.key(3), []

    def loss(config, online, target, step, keys):
        del config
        data = jax.random.key_data(jax.numpy.stack(keys))
        got.append((online(step.obs), target(step.next_obs), step, data))
        return got[-1], step.reward

    head = q_learner.Head(
        network=lambda spec, config: Scale(), values=lambda config, q: q, loss=loss
    )
    of_transition = q_learner.transition_loss(head, None, config)
    two, ten = ({"params": {"scale": x}} for x in (2.0, 10.0))
    (online, target, step, data), _ = jax.jit(of_transition)(two, ten, window, key)
    assert (online.item(), target.item()) == (6.0, 70.0)
    assert (step.action, step.reward, step.discount) == (1, 2.0, 0.25)
    np.testing.assert_array_equal(data, jax.random.key_data(jax.random.split(key)))
