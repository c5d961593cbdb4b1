"""Deep Q-learning. Mnih et al. (2015), https://doi.org/10.1038/nature14236.

Double: van Hasselt et al. (2016), https://arxiv.org/abs/1509.06461.
Dueling: Wang et al. (2016), https://arxiv.org/abs/1511.06581.
Munchausen: Vieillard et al. (2020), https://arxiv.org/abs/2007.14430.
Noisy: Fortunato et al. (2018), https://arxiv.org/abs/1706.10295.
Repeated exploring actions: Dabney et al. (2020), https://arxiv.org/abs/2006.01782.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import losses, networks
from rljax.contracts import Network
from rljax.learners import q_learner
from rljax.learners.q_learner import Head, Keys, Outputs, QLearnerConfig, Step
from rljax.learners.q_learner import QState as State
from rljax.networks import distributions
from rljax.types import Agent, Extras, Key, Memory, Obs, Spec

PRESETS: dict[str, cfg.Preset] = {
    "MountainCar-v0": cfg.Preset(
        dict(
            learning_rate=1e-3,
            epsilon_end=0.1,
            exploration_fraction=0.1,
            max_repeats=32,  # single actions hardly ever reach the goal
            warmup_steps=1_000,
        ),
        env_params=({}, dict(scale_obs=True)),  # the second is better still
    ),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config(QLearnerConfig):
    """Hyperparameters beside those of every `QLearnerConfig`."""

    entropy_temperature: float = 0.03  # of Munchausen's soft values
    munchausen_coefficient: float = 0.9  # of the bonus for likely actions
    max_repeats: int = cfg.static(1)  # of an exploring action; drawn as 1 / n^2
    double: bool = cfg.static(False)  # select the next action by the online network
    dueling: bool = cfg.static(False)
    munchausen: bool = cfg.static(False)  # soft values, bonus for likely actions
    noisy: bool = cfg.static(False)  # explore by noise in the weights

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        super().validate()
        cfg.check_range(self, "entropy_temperature", low=0.0, open_low=True)
        cfg.check_range(self, "munchausen_coefficient", low=0.0, high=1.0)
        cfg.check_count(self, "max_repeats")
        if self.noisy and self.max_repeats > 1:
            raise ValueError(
                f"max_repeats={self.max_repeats}: must be 1 with noisy=True"
            )
        if self.double and self.munchausen:
            raise ValueError("double=True: must be False with munchausen=True")


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    agent = q_learner.make("dqn", spec, HEAD)
    return agent._replace(memory=memory, act=functools.partial(act, spec))


def network(spec: Spec, config: Config) -> Network:
    """The action values' network."""
    return networks.QNetwork(
        body=networks.body(spec, config),
        num_actions=q_learner.num_actions(spec),
        dueling=config.dueling,
        noisy=config.noisy,
    )


def td_error(config: Config, online: Outputs, target: Outputs, step: Step) -> jax.Array:
    """Temporal-difference error of one transition, `[]`."""
    if config.munchausen:
        return losses.munchausen_q_learning(
            q_tm1=online(step.obs),
            a_tm1=step.action,
            r_t=step.reward,
            discount_t=step.discount,
            q_t=target(step.next_obs),
            target_q_tm1=target(step.obs),
            entropy_temperature=config.entropy_temperature,
            munchausen_coefficient=config.munchausen_coefficient,
            stop="none",
        )
    if config.double:
        return losses.double_q_learning(
            q_tm1=online(step.obs),
            a_tm1=step.action,
            r_t=step.reward,
            discount_t=step.discount,
            q_t_value=target(step.next_obs),
            q_t_selector=online(step.next_obs),
            stop="none",
        )
    return losses.q_learning(
        q_tm1=online(step.obs),
        a_tm1=step.action,
        r_t=step.reward,
        discount_t=step.discount,
        q_t=target(step.next_obs),
        stop="none",
    )


def loss(
    config: Config, online: Outputs, target: Outputs, step: Step, keys: Keys
) -> tuple[jax.Array, jax.Array]:
    """Half the squared error of one transition, and its absolute value, `[]` each."""
    del keys  # nothing is drawn
    error = td_error(config, online, target, step)
    return optax.l2_loss(error), jnp.abs(error)


HEAD = Head(
    network=network,
    values=lambda config, q: q,
    loss=loss,
    noisy=lambda config: config.noisy,
)


def memory(config: Config, num_envs: int) -> Memory:
    """Make `[num_envs, 2]` of repeated actions, none yet; `()` if none repeats."""
    repeats = config.max_repeats > 1
    return jnp.zeros((num_envs, 2), jnp.int32) if repeats else ()


def act(
    spec: Spec,
    config: Config,
    state: State,
    memory: Memory,
    obs: Obs,
    key: Key,
    explore: bool,
) -> tuple[jax.Array, Memory, Extras]:
    """Act epsilon-greedily or by noisy weights; exploring actions may repeat."""
    q, epsilon, key = q_learner.explore_values(
        HEAD, spec, config, state=state, obs=obs, key=key, explore=explore
    )
    if explore and config.max_repeats > 1:
        action, memory = distributions.repeated_epsilon_greedy(
            q, epsilon, memory, max_repeats=config.max_repeats, key=key
        )
        return action, memory, ()
    return distributions.epsilon_greedy(q, epsilon, key), memory, ()
