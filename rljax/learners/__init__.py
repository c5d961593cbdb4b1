"""Mechanics that agents share: losses, targets and the order of updates stay theirs.

actor_critic     an actor and critics from a replay
by_rule          outputs towards the targets of a learned update rule
duals            dual variables of bounds on divergences
exploration      noise that is added to actions or to a prior
fresh_q_learner  action values from fresh rollouts
on_policy        a policy and a value from fresh rollouts
optimizers       Adam, clipping and schedules with derivatives where a gradient is 0
q_learner        action values from a replay
sequences        steps in a row, for networks with memory
"""

from typing import TYPE_CHECKING, Any

from rljax._deferred import submodule

if TYPE_CHECKING:  # for editors; a test compares it with the folder
    from rljax.learners import actor_critic as actor_critic
    from rljax.learners import by_rule as by_rule
    from rljax.learners import duals as duals
    from rljax.learners import exploration as exploration
    from rljax.learners import fresh_q_learner as fresh_q_learner
    from rljax.learners import on_policy as on_policy
    from rljax.learners import optimizers as optimizers
    from rljax.learners import q_learner as q_learner
    from rljax.learners import sequences as sequences


def __getattr__(name: str) -> Any:
    """Import a module of the package when it is first asked for."""
    return submodule(__name__, name)
