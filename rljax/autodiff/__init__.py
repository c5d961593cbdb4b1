"""Gradients as instruments: per transition, of higher order, through choices.

curvature         Hessians, Fisher matrices and their products, natural gradients
estimators        gradients of expectations: score function, pathwise, DiCE, RELAX
per_transition    a gradient, or its exact norm, for each transition of a batch
stop              semi-gradients and residual gradients by argument separation
straight_through  gradients through sampling, rounding and quantising
"""

from rljax.autodiff.curvature import (
    fisher_vp,
    gauss_newton_vp,
    hessian,
    hutchinson_trace,
    hvp,
    hvp_fn,
    natural_gradient,
    nth_derivative,
    top_eigenvalues,
)
from rljax.autodiff.estimators import (
    dice_objective,
    loaded_dice_objective,
    magic_box,
    pathwise_gradient,
    rebar_surrogate,
    relax_gradient,
    score_function_gradient,
    variance_table,
)
from rljax.autodiff.per_transition import (
    GradientStatistics,
    clipped_mean_grad,
    gradient_statistics,
    pairwise_cosine,
    per_transition_grad_norms,
    per_transition_grads,
    value_and_grad_with_norms,
)
from rljax.autodiff.stop import (
    residual_gradient,
    scale_gradient,
    semi_gradient,
    value_and_semi_gradient,
)
from rljax.autodiff.straight_through import (
    Quantized,
    bernoulli_straight_through,
    categorical_straight_through,
    gumbel_softmax,
    quantize,
    round_straight_through,
    sign_straight_through,
    straight_through,
)
from rljax.losses.basic import clip_gradient

__all__ = [
    "GradientStatistics",
    "Quantized",
    "bernoulli_straight_through",
    "categorical_straight_through",
    "clip_gradient",
    "clipped_mean_grad",
    "dice_objective",
    "fisher_vp",
    "gauss_newton_vp",
    "gradient_statistics",
    "gumbel_softmax",
    "hessian",
    "hutchinson_trace",
    "hvp",
    "hvp_fn",
    "loaded_dice_objective",
    "magic_box",
    "natural_gradient",
    "nth_derivative",
    "pairwise_cosine",
    "pathwise_gradient",
    "per_transition_grad_norms",
    "per_transition_grads",
    "quantize",
    "rebar_surrogate",
    "relax_gradient",
    "residual_gradient",
    "round_straight_through",
    "scale_gradient",
    "score_function_gradient",
    "semi_gradient",
    "sign_straight_through",
    "straight_through",
    "top_eigenvalues",
    "value_and_grad_with_norms",
    "value_and_semi_gradient",
    "variance_table",
]
