"""Losses, targets and estimators: un-batched functions from arrays to arrays.

basic                masked means, indexing, clipped gradients
distributional       categorical and quantile distributions of returns
gradient_td          TDC and GTD2
iql                  the expectile loss of implicit Q-learning
mpo                  MPO and V-MPO
multi_step           temporal-difference errors of a trajectory: Q(lambda), Retrace
off_policy_returns   returns of another policy's trajectory, with any trace
one_step             temporal-difference errors of one transition: TD, Q-learning
policy_gradient      policy gradients, PPO's losses, entropy, distillation
popart               values in normalised units
returns              advantages and returns of a trajectory: GAE, n steps, lambda
sac                  critic, actor and temperature of soft actor-critics
td3                  critic and actor of DPG and TD3
transformed_returns  returns of values learned in a transformed space
transforms           squashing functions and two-hot codes, with their inverses
vtrace               errors and advantages corrected by importance ratios

Noise for exploration, which rlax has among its losses, is in
`rljax.learners.exploration`, and is found here too.
"""

from rljax.learners.exploration import (
    add_dirichlet_noise,
    add_gaussian_noise,
    add_ornstein_uhlenbeck_noise,
)
from rljax.losses.basic import (
    batched_index,
    clip_gradient,
    masked_mean,
)
from rljax.losses.distributional import (
    categorical_double_q_learning,
    categorical_l2_project,
    categorical_q_learning,
    categorical_td_learning,
    implicit_quantile_q_learning,
    quantile_expected_sarsa,
    quantile_q_learning,
    quantile_regression_loss,
    two_hot_loss,
)
from rljax.losses.gradient_td import (
    gradient_td_loss,
)
from rljax.losses.iql import (
    expectile_loss,
)
from rljax.losses.mpo import (
    LagrangePenalty,
    MpoOutputs,
    compute_parametric_kl_penalty_and_dual_loss,
    mpo_compute_weights_and_temperature_loss,
    mpo_loss,
    vmpo_compute_weights_and_temperature_loss,
    vmpo_loss,
)
from rljax.losses.multi_step import (
    q_lambda,
    retrace,
    retrace_continuous,
    sarsa_lambda,
    td_lambda,
    transformed_n_step_q_learning,
    transformed_q_lambda,
    transformed_retrace,
    tree_backup,
)
from rljax.losses.off_policy_returns import (
    general_off_policy_returns_from_action_values,
    general_off_policy_returns_from_q_and_v,
)
from rljax.losses.one_step import (
    double_q_learning,
    expected_sarsa,
    munchausen_q_learning,
    persistent_q_learning,
    q_learning,
    qv_learning,
    qv_max,
    sarsa,
    soft_q_learning,
    td_learning,
)
from rljax.losses.policy_gradient import (
    awr_loss,
    clipped_surrogate_pg_loss,
    clipped_value_loss,
    entropy_loss,
    kl_penalty_loss,
    policy_distillation_loss,
    policy_gradient_loss,
    qpg_loss,
    rm_loss,
    rpg_loss,
)
from rljax.losses.popart import (
    PopArtOutput,
    PopArtState,
    art,
    normalize,
    pop,
    popart,
    unnormalize,
    unnormalize_linear,
)
from rljax.losses.returns import (
    discounted_returns,
    generalized_advantage_estimation,
    lambda_returns,
    n_step_bootstrapped_returns,
)
from rljax.losses.sac import (
    sac_actor_loss,
    sac_discrete_actor_loss,
    sac_discrete_learning,
    sac_learning,
    sac_temperature_loss,
)
from rljax.losses.td3 import (
    dpg_loss,
    td3_learning,
    td3_smoothed_action,
)
from rljax.losses.transformed_returns import (
    transformed_general_off_policy_returns_from_action_values,
    transformed_lambda_returns,
    transformed_n_step_returns,
)
from rljax.losses.transforms import (
    DISCOUNT_TRANSFORM_PAIR,
    HYPERBOLIC_SIN_PAIR,
    IDENTITY_PAIR,
    SIGNED_HYPERBOLIC_PAIR,
    SIGNED_LOGP1_PAIR,
    TxPair,
    compose_tx,
    muzero_pair,
    power,
    signed_expm1,
    signed_hyperbolic,
    signed_logp1,
    signed_parabolic,
    transform_from_2hot,
    transform_to_2hot,
    twohot_pair,
    unbiased_transform_pair,
)
from rljax.losses.vtrace import (
    VTraceOutput,
    importance_corrected_td_errors,
    leaky_vtrace,
    leaky_vtrace_td_error_and_advantage,
    vtrace,
    vtrace_td_error_and_advantage,
)

__all__ = [
    "DISCOUNT_TRANSFORM_PAIR",
    "HYPERBOLIC_SIN_PAIR",
    "IDENTITY_PAIR",
    "LagrangePenalty",
    "MpoOutputs",
    "PopArtOutput",
    "PopArtState",
    "SIGNED_HYPERBOLIC_PAIR",
    "SIGNED_LOGP1_PAIR",
    "TxPair",
    "VTraceOutput",
    "add_dirichlet_noise",
    "add_gaussian_noise",
    "add_ornstein_uhlenbeck_noise",
    "art",
    "awr_loss",
    "batched_index",
    "categorical_double_q_learning",
    "categorical_l2_project",
    "categorical_q_learning",
    "categorical_td_learning",
    "clip_gradient",
    "clipped_surrogate_pg_loss",
    "clipped_value_loss",
    "compose_tx",
    "compute_parametric_kl_penalty_and_dual_loss",
    "discounted_returns",
    "double_q_learning",
    "dpg_loss",
    "entropy_loss",
    "expected_sarsa",
    "expectile_loss",
    "general_off_policy_returns_from_action_values",
    "general_off_policy_returns_from_q_and_v",
    "generalized_advantage_estimation",
    "gradient_td_loss",
    "implicit_quantile_q_learning",
    "importance_corrected_td_errors",
    "kl_penalty_loss",
    "lambda_returns",
    "leaky_vtrace",
    "leaky_vtrace_td_error_and_advantage",
    "masked_mean",
    "mpo_compute_weights_and_temperature_loss",
    "mpo_loss",
    "munchausen_q_learning",
    "muzero_pair",
    "n_step_bootstrapped_returns",
    "normalize",
    "persistent_q_learning",
    "policy_distillation_loss",
    "policy_gradient_loss",
    "pop",
    "popart",
    "power",
    "q_lambda",
    "q_learning",
    "qpg_loss",
    "quantile_expected_sarsa",
    "quantile_q_learning",
    "quantile_regression_loss",
    "qv_learning",
    "qv_max",
    "retrace",
    "retrace_continuous",
    "rm_loss",
    "rpg_loss",
    "sac_actor_loss",
    "sac_discrete_actor_loss",
    "sac_discrete_learning",
    "sac_learning",
    "sac_temperature_loss",
    "sarsa",
    "sarsa_lambda",
    "signed_expm1",
    "signed_hyperbolic",
    "signed_logp1",
    "signed_parabolic",
    "soft_q_learning",
    "td3_learning",
    "td3_smoothed_action",
    "td_lambda",
    "td_learning",
    "transform_from_2hot",
    "transform_to_2hot",
    "transformed_general_off_policy_returns_from_action_values",
    "transformed_lambda_returns",
    "transformed_n_step_q_learning",
    "transformed_n_step_returns",
    "transformed_q_lambda",
    "transformed_retrace",
    "tree_backup",
    "two_hot_loss",
    "twohot_pair",
    "unbiased_transform_pair",
    "unnormalize",
    "unnormalize_linear",
    "vmpo_compute_weights_and_temperature_loss",
    "vmpo_loss",
    "vtrace",
    "vtrace_td_error_and_advantage",
]
