"""Networks of agents, what they are made of, and how they read observations.

distributions  of actions
feed_forward   policies, values and action values without memory
layers         dense, convolution, noise, orthogonal starts
observations   states and levels as networks see them
recurrent      policies, values and action values with a memory
"""

from rljax.networks import distributions, layers, observations
from rljax.networks.feed_forward import (
    Actor,
    ActorCritic,
    ContinuousQ,
    CosineEmbedding,
    Critic,
    DeterministicActor,
    Ensemble,
    ImplicitQuantileNetwork,
    PolicyHead,
    QNetwork,
    TanhGaussianActor,
    ValueHead,
)
from rljax.networks.recurrent import (
    Recurrent,
    RecurrentQNetwork,
    recall,
)

__all__ = [
    "Actor",
    "ActorCritic",
    "ContinuousQ",
    "CosineEmbedding",
    "Critic",
    "DeterministicActor",
    "Ensemble",
    "ImplicitQuantileNetwork",
    "PolicyHead",
    "QNetwork",
    "Recurrent",
    "RecurrentQNetwork",
    "TanhGaussianActor",
    "ValueHead",
    "distributions",
    "layers",
    "observations",
    "recall",
]
