"""Outer losses: scores of an agent by a fixed discount, with a critic of that discount.

Each score is one that the agent itself climbs or descends, so that it has a slope in
what the agent learns: see `choose`.
"""

from rljax.meta import (
    of_actors,
    of_recurrent_policies,
    of_recurrent_values,
    of_rollouts,
    of_simulated,
    of_values,
)
from rljax.meta.types import Objective, Settings
from rljax.types import Agent, Spec


def choose(agent: Agent, spec: Spec, settings: Settings) -> Objective:
    """Choose the objective that fits what the agent learns.

    ================================  ===============================================
    agent                             score
    ================================  ===============================================
    runs its environments again       return of the newest rollout, run again
    recurrent, `policy`               advantages along the newest rollout, recalled
    recurrent, `q_values`, a replay   TD errors of sequences of the replay, recalled
    `policy` of action values         the values of its actions, on a replay's batch:
                                      along their slope, or by the actions' likelihood
    `policy`                          advantages along the newest rollout
    `q_values`                        TD errors, of the rollout or of a replay's batch
    `value`                           TD errors along the newest rollout
    ================================  ===============================================

    Raises:
      ValueError: the agent shows nothing that can be scored.
    """
    if settings.outer_critic == "inner" and not _from_rollouts(agent):
        raise ValueError(
            "outer_critic='inner': only of agents with a policy or a value that learn "
            "from rollouts without memory"
        )
    if agent.simulates:
        return of_simulated.objective(agent, spec, settings)
    if agent.recurrent and agent.policy is not None:
        return of_recurrent_policies.objective(agent, spec, settings)
    if agent.recurrent and agent.q_values is not None:
        return of_recurrent_values.objective(agent, spec, settings)
    if agent.policy is not None and agent.policy_gradient != "rollout":
        return of_actors.objective(agent, spec, settings)
    if agent.policy is not None:
        return of_rollouts.of_policy(agent, spec, settings)
    if agent.q_values is not None:
        return of_values.objective(agent, spec, settings)
    if agent.value is not None and not agent.recurrent:
        return of_rollouts.of_value(agent, spec, settings)
    raise ValueError("tune: the agent has no `policy`, `q_values` or `value` to score")


def _from_rollouts(agent: Agent) -> bool:
    if agent.simulates or agent.recurrent or agent.policy_gradient != "rollout":
        return False
    return agent.policy is not None or agent.q_values is None
