"""Networks of agents, what they are made of, and how they read observations.

distributions  of actions
feed_forward   policies, values and action values without memory
layers         dense, convolution, noise, orthogonal starts
observations   states and levels as networks see them
products       with weights, whose gradients are quick on CPU
recurrent      policies, values and action values with a memory
torsos         from observations of any tree to features
"""

from rljax.networks import distributions, layers, observations, torsos
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
from rljax.networks.recurrent import CELLS, Recurrent, RecurrentQNetwork, recall
from rljax.networks.torsos import TORSOS, Body, Encoder, body, policy_body
from rljax.types import Cell, Torso

__all__ = [
    "Actor",
    "ActorCritic",
    "Body",
    "CELLS",
    "Cell",
    "ContinuousQ",
    "CosineEmbedding",
    "Critic",
    "DeterministicActor",
    "Encoder",
    "Ensemble",
    "ImplicitQuantileNetwork",
    "PolicyHead",
    "QNetwork",
    "Recurrent",
    "RecurrentQNetwork",
    "TORSOS",
    "TanhGaussianActor",
    "Torso",
    "ValueHead",
    "body",
    "distributions",
    "layers",
    "observations",
    "policy_body",
    "recall",
    "torsos",
]
