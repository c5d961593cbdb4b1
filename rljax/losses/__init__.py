"""Losses, targets and estimators: un-batched functions from arrays to arrays."""

from rljax.losses.policy import clipped_surrogate_pg_loss, clipped_value_loss
from rljax.losses.returns import generalized_advantage_estimation, lambda_returns
from rljax.losses.value import double_q_learning, q_learning, td_learning

__all__ = [
    "clipped_surrogate_pg_loss",
    "clipped_value_loss",
    "double_q_learning",
    "generalized_advantage_estimation",
    "lambda_returns",
    "q_learning",
    "td_learning",
]
