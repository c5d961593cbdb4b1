r"""Losses, targets and estimators: un-batched functions from arrays to arrays.

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

A loss takes one transition or one trajectory; `jax.vmap` maps it over a batch. It
declares its arguments, `@checked("q_tm1[A] a_tm1[]:int lambda_[T]|[] x[...]")`: a
letter is the same size everywhere, `[]` a scalar, `[T]|[]` either, `[...]` any shape,
the same everywhere. Floats of several dtypes are promoted to the widest of them, and
Python's and numpy's numbers count as floats. Arguments with the same name have the same
meaning, which `help(rljax.losses.q_learning)` repeats:

  a_t: in [0, A), the action taken next; any where the trace is 0 and in the last step.
    Outside, the result is NaN.
  a_tm1: in [0, A), the action taken; outside, the result is NaN.
  adv_t: advantage of the action taken; differentiable.
  alpha, alpha_: in [0, 1], 1 for V-trace, 0 for importance sampling; differentiable.
  alpha_loss_weight: `[]` weight of :math:`L_\alpha`.
  axis_name: mapped axis or axes (`jax.vmap`, `jax.shard_map`) that hold the rest of the
    batch.
  c_t: trace coefficient of the action taken next, 0 wherever an episode was truncated.
    Differentiable, for the lambda in it: stop its ratio first.
  clip_pg_rho_threshold: greatest ratio in the advantages; differentiable.
  clip_rho_threshold: greatest ratio in the errors; differentiable.
  discount_t: in [0, 1], 0 only at termination; differentiable.
  dist_q_t: values of the true successor (the final observation when truncated), by
    action; the target network's.
  dist_q_tm1: values at `tau_q_tm1`, by action, of the state acted in: the prediction.
  eps: added to `mu_t` against division by 0; differentiable.
  huber_param: :math:`\kappa`; 0 for the absolute value. Differentiable, but not at 0.
  kl_constraints: at least one pair of divergences of the new from the old policy, E,
    and their `LagrangePenalty`; where it is per dimension, E + `[A]`.
  kl_loss_weight: `[]` weight of :math:`L_{KL}`.
  lambda_, lambda_t: in [0, 1], 0 wherever an episode was truncated; differentiable.
  logits_t: log-probabilities up to a constant, -inf for masked actions.
  max_value: the last bin, greater than the first; a Python float.
  min_value: the first bin; a Python float.
  mu_t: probability of `a_t` under the policy that took it.
  n: at least 1; a Python integer.
  num_bins: at least 2; a Python integer.
  pi_t: probabilities, in the true successor, of the policy that is evaluated.
  policy_loss_weight: `[]` weight of the policy's loss.
  probs_a_t: probabilities, in the true successor, of the policy that is evaluated. They
    belong to the bootstrap: an epsilon in them has a gradient under "none" only.
  projection_operator: makes temperature and alpha positive.
  q_atoms_t, v_atoms_t: atoms of the true successor. Both supports are taken for
    hyperparameters, not network outputs: only "target" stops them.
  q_atoms_tm1, v_atoms_tm1: increasing atoms of the prediction. Only the projection uses
    them: they are part of the target.
  q_logits_tm1, v_logits_tm1: logits of the state acted in: the prediction.
  q_t: action values of the true successor (the final observation when truncated).
  q_tm1: action values of the state acted in: the prediction.
  r_t: reward.
  rho_tm1: probability of the action taken under the policy that is evaluated, over its
    probability under the policy that took it.
  sample_mask: which steps count. A step that is left out of the trace has the error of
    the next one: mask the loss as well.
  stop: which gradients are stopped; the value is the same. "bootstrap" stops network
    outputs in the target and leaves reward, discount, lambda and other hyperparameters
    their gradients: meta-gradients through one inner step are exact. "target" stops the
    whole target, as rlax does. "none" stops nothing: for residual gradients, and for
    exact meta-gradients through several inner steps, with the arguments separated,
    `jax.grad(loss, argnums=0)(params, bootstrap_params)`.
  tau_q_tm1: in [0, 1], cumulative probabilities; differentiable.
  temperature: not negative; differentiable.
  temperature_constraint: alpha is the temperature :math:`\eta`, `[]` or as E; epsilon
    bounds the divergence of the weighted from the old policy.
  temperature_loss_weight: `[]` weight of :math:`L_\eta`.
  tx_pair: increasing :math:`h` and its inverse; parameters inside stay differentiable.
  v_t: value of the true successor (the final observation when truncated).
  v_tm1: value of the state acted in: the prediction.
  w_t: weight; differentiable.
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
