"""Training programs, and the host's part between their chunks.

checking    faults of an agent of one's own, in a line
checkpoint  train states on disk, complete or not there
cpu         devices and threads of runs on CPU
evaluate    returns of whole episodes
hosts       several processes that run one program
logging     rows of metrics: CSV, console, TensorBoard, Weights & Biases
parallel    collectives over the shards of one run
plotting    learning curves
policy      a trained policy on its own: what acting reads of a run
programs    compiled programs: made ahead, and kept for the next process
rollout     steps of a policy in a batch of environments, and their simulation
sharding    runs over devices, and the shards of a run
train       the one loop: `init`, `run`, `train`
"""

from typing import TYPE_CHECKING, Any

from rljax._deferred import submodule

if TYPE_CHECKING:  # for editors; a test compares it with the folder
    from rljax.running import checking as checking
    from rljax.running import checkpoint as checkpoint
    from rljax.running import cpu as cpu
    from rljax.running import evaluate as evaluate
    from rljax.running import hosts as hosts
    from rljax.running import logging as logging
    from rljax.running import parallel as parallel
    from rljax.running import plotting as plotting
    from rljax.running import policy as policy
    from rljax.running import programs as programs
    from rljax.running import rollout as rollout
    from rljax.running import sharding as sharding
    from rljax.running import train as train


def __getattr__(name: str) -> Any:
    """Import a module of the package when it is first asked for."""
    return submodule(__name__, name)
