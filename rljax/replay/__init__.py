"""Stored steps, each once, and how they are drawn.

buffer    a ring of the newest steps: `init`, `add`, `sample`, ...
priority  draws and weights by TD errors or by gradient norms
sum_tree  sums over a changing array
"""

from rljax.replay import priority, sum_tree
from rljax.replay.buffer import (
    Replay,
    Sample,
    Steps,
    Windows,
    add,
    importance_weights,
    init,
    sample,
    sample_sequences,
    size,
    update_priorities,
    validate,
    windows,
)

__all__ = [
    "Replay",
    "Sample",
    "Steps",
    "Windows",
    "add",
    "importance_weights",
    "init",
    "priority",
    "sample",
    "sample_sequences",
    "size",
    "sum_tree",
    "update_priorities",
    "validate",
    "windows",
]
