"""The command `rljax`, and `scripts/`: one module per command, and what they share.

benchmark          measures rljax beside its peers, or beside another revision
benchmarks         the parts of `benchmark`, and the processes that it starts
check_env          tries an environment and lists its faults
common             runs and their metrics, options
compare            compares methods over seeds and tasks, with intervals
errors             bad input in one line
evaluate           plays episodes with a trained run, draws one
evaluations        evaluates a run while it trains
export             writes a trained policy as files that act without the run
folders            run folders of one process each, files that replace their own
front              finds the command, and sets up devices before jax starts
gradient_variance  measures how much priorities help a gradient
looking            looks at a run before it starts
maml               learns a policy that adapts to a new task
meta_scores          tests a rule on unseen tasks, beside others
meta_train         learns an update rule for agents
plot               compares runs in one picture
sweep              trains with many hyperparameters in one program
sweeps             the parts of `sweep`: values, groups, searches, ranks
train              trains an agent
"""

from rljax.commands.front import main, run

__all__ = ["main", "run"]
