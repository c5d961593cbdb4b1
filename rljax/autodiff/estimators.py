"""Estimators of derivatives of an expectation under a distribution with parameters.

DiCE and RELAX take one trajectory or one draw: callers vmap and average.
"""

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.autodiff._checks import floats, scalar
from rljax.types import Params

X = TypeVar("X")  # one sample, any tree; a leading axis [N] makes samples
G = TypeVar("G")  # a gradient, any tree
Kind = Literal["bernoulli", "categorical"]


def magic_box(log_probs: jax.Array) -> jax.Array:
    r"""DiCE's operator: 1, with all derivatives of the probability ratio.

    .. math:: \square(x) = \exp(x - \text{stop}(x))

    `f * magic_box(log_prob)` has, in expectation over the samples, the right
    derivatives of every order; `f * log_prob` has only the first.

    Args:
      log_probs: any shape, finite: sums of the log-probabilities of all samples that
        influence what is multiplied.

    Returns:
      The shape of `log_probs`, all 1.

    Raises:
      ValueError: `log_probs` is not floating.

    Example:
      >>> import jax
      >>> from rljax.autodiff import magic_box
      >>> def objective(x):
      ...     return 3.0 * magic_box(2.0 * x)
      >>> float(jax.grad(objective)(0.5)), float(jax.grad(jax.grad(objective))(0.5))
      (6.0, 12.0)

    References:
      Foerster et al. (2018), section 4, https://arxiv.org/abs/1802.05098
    """
    if not jnp.issubdtype(jax.typeof(log_probs).dtype, jnp.floating):
        given = jax.typeof(log_probs).str_short()
        raise ValueError(f"log_probs: expected a floating array, got {given}")
    return jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))


def dice_objective(
    log_probs: jax.Array,
    rewards: jax.Array,
    discounts: ArrayLike,
    baselines: jax.Array | None = None,
) -> jax.Array:
    r"""The return of a trajectory, with unbiased derivatives of every order.

    .. math::
        J = \sum_t w_t \left[ \square(\ell_{\le t}) \, r_t
        + \square(\ell_{<t}) (1 - \square(\ell_t)) \, b_t \right],
        \qquad w_t = \prod_{i<t} \gamma_i

    with :math:`\ell` the log-probabilities and their sums. The baseline's term is 0 in
    value and in the expectation of every derivative. Foerster et al. have it without
    the factor of the steps before, and less variance in first derivatives only; with
    it, as in Mao et al., second ones gain as well.

    Args:
      log_probs: `[T]` log-probabilities of the actions taken, finite.
      rewards: `[T]`
      discounts: `[T]` or `[]` in [0, 1], 0 only at termination; differentiable.
      baselines: `[T]` estimates of the return from each step on, made without its
        action. Stop their gradients.

    Returns:
      `[]`, to be maximised.

    Raises:
      ValueError: shapes or dtypes.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import dice_objective
      >>> log_probs, rewards = jnp.log(jnp.array([0.5, 0.25])), jnp.array([1.0, 2.0])
      >>> dice_objective(log_probs, rewards, 0.5)
      Array(2., dtype=float32)
      >>> jax.grad(dice_objective)(log_probs, rewards, 0.5)
      Array([2., 1.], dtype=float32)

    References:
      Foerster et al. (2018), section 4, https://arxiv.org/abs/1802.05098
      Mao et al. (2019), https://proceedings.mlr.press/v97/mao19a.html
    """
    _check_steps(log_probs, rewards=rewards, baselines=baselines)
    weights = _discount_weights(log_probs, discounts)
    until = jnp.cumsum(log_probs)
    objective = jnp.sum(weights * magic_box(until) * rewards)
    if baselines is not None:
        factors = magic_box(until - log_probs) * (1 - magic_box(log_probs))
        objective += jnp.sum(weights * factors * baselines)
    return objective


def loaded_dice_objective(
    log_probs: jax.Array,
    advantages: jax.Array,
    discounts: ArrayLike,
    lambda_: ArrayLike = 1.0,
) -> jax.Array:
    r"""DiCE made of advantages: derivatives of every order, for any estimator of them.

    .. math::
        J = \sum_t w_t \left[ \square(\ell_t + \lambda v_t) - \square(\lambda v_t)
        \right] A_t, \qquad v_{t+1} = \ell_t + \lambda v_t, \; v_0 = 0,
        \; w_t = \prod_{i<t} \gamma_i

    With exact advantages and :math:`\lambda = 1` the derivatives are unbiased, of
    every order. A smaller :math:`\lambda` forgets what earlier actions did to the
    distribution of states: less variance, and a bias in second and higher derivatives.

    Args:
      log_probs: `[T]` log-probabilities of the actions taken, finite.
      advantages: `[T]`, from any estimator, for instance
        `rljax.losses.generalized_advantage_estimation`. Stop the values in them, as
        it does, not the whole, which would stop its discount too.
      discounts: `[T]` or `[]` in [0, 1], 0 only at termination; differentiable.
      lambda_: `[]` in [0, 1]; differentiable.

    Returns:
      `[]`, to be maximised. The value is 0, only its derivatives mean something.

    Raises:
      ValueError: shapes or dtypes.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import loaded_dice_objective
      >>> log_probs, adv = jnp.log(jnp.array([0.5, 0.25])), jnp.array([1.0, 2.0])
      >>> jax.grad(loaded_dice_objective)(log_probs, adv, 0.5)
      Array([1., 1.], dtype=float32)

    References:
      Farquhar et al. (2019), section 4, https://arxiv.org/abs/1909.10549
    """
    _check_steps(log_probs, advantages=advantages)
    if jnp.ndim(lambda_) != 0:
        raise ValueError(f"lambda_: expected a scalar, got {jnp.shape(lambda_)}")
    weights = _discount_weights(log_probs, discounts)
    lambda_ = jnp.asarray(lambda_, log_probs.dtype)

    def step(v: jax.Array, log_prob: jax.Array) -> tuple[jax.Array, jax.Array]:
        before = lambda_ * v
        return before + log_prob, before

    # Of value 0, so that lambda has the derivative of a factor: magic boxes would count
    # lambda times a value as a log-probability that depends on lambda.
    log_probs = log_probs - jax.lax.stop_gradient(log_probs)
    _, before = jax.lax.scan(step, jnp.zeros_like(log_probs[0]), log_probs)
    factors = magic_box(before + log_probs) - magic_box(before)
    return jnp.sum(weights * factors * advantages)


def score_function_gradient(
    log_prob_fn: Callable[[Params, X], jax.Array],
    f: Callable[[X], jax.Array],
    params: Params,
    samples: X,
    baseline: ArrayLike | Literal["leave_one_out"] = 0.0,
) -> Params:
    r"""The score-function (REINFORCE) estimate of the gradient of an expectation.

    .. math:: \frac{1}{N} \sum_n (f(x_n) - b) \nabla_\theta \log p_\theta(x_n)

    Unbiased for every f, also for one that jumps.

    Args:
      log_prob_fn: `(params, x) -> []`
      f: `x -> []`
      params: a tree of floating arrays.
      samples: a tree of `[N, ...]`, drawn with these `params`.
      baseline: `[]`, made without these samples; or "leave_one_out": for each sample
        the mean of f over the others.

    Returns:
      The estimate, like `params`.

    Raises:
      ValueError: unequal leading axes of `samples` or none, an unknown `baseline`,
        "leave_one_out" with one sample, `params` not floating, a function that does
        not return a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import score_function_gradient
      >>> def log_prob(mean, x):
      ...     return -0.5 * (x - mean) ** 2
      >>> score_function_gradient(log_prob, jnp.square, 1.0, jnp.array([0.0, 3.0]))
      Array(9., dtype=float32, weak_type=True)

    References:
      Williams (1992), https://doi.org/10.1007/BF00992696
      Kool et al. (2019), eq. 8, https://openreview.net/forum?id=r1lgTGL5DE
    """
    floats("params", params)
    shapes = [jnp.shape(x) for x in jax.tree.leaves(samples)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(f"samples: expected one leading axis N > 0, got {shapes}")
    ((size,),) = sizes
    values = jax.lax.stop_gradient(jax.vmap(lambda x: scalar("f(x)", f(x)))(samples))
    if isinstance(baseline, str):
        if baseline != "leave_one_out":
            raise ValueError(f"{baseline=}, expected a number or 'leave_one_out'")
        if size < 2:
            raise ValueError("'leave_one_out' needs at least two samples, got one")
        baseline = (jnp.sum(values) - values) / (size - 1)
    weights = values - baseline

    def surrogate(params: Params) -> jax.Array:
        def log_prob(x: X) -> jax.Array:
            return scalar("log_prob_fn(params, x)", log_prob_fn(params, x))

        return jnp.mean(weights * jax.vmap(log_prob)(samples))

    return jax.grad(surrogate)(params)


def pathwise_gradient(
    sample_fn: Callable[[Params, jax.Array], X],
    f: Callable[[X], jax.Array],
    params: Params,
    key: jax.Array,
    n: int = 1,
) -> Params:
    r"""The pathwise (reparameterised) estimate of the gradient of an expectation.

    .. math:: \frac{1}{n} \sum_i \nabla_\theta f(x_\theta(\epsilon_i))

    Unbiased where both functions are continuous; a jump contributes nothing.

    Args:
      sample_fn: `(params, key) -> x`, differentiable in `params`.
      f: `x -> []`
      params: a tree of floating arrays.
      key: `[]` typed key, consumed here.
      n: number of samples.

    Returns:
      The estimate, like `params`.

    Raises:
      ValueError: `n` below 1, `params` not floating, `f` not returning a scalar.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import pathwise_gradient
      >>> def sample(mean, key):
      ...     return mean + jax.random.normal(key)
      >>> pathwise_gradient(sample, lambda x: 3 * x, 1.0, jax.random.key(0), 8)
      Array(3., dtype=float32, weak_type=True)

    References:
      Kingma and Welling (2014), section 2.4, https://arxiv.org/abs/1312.6114
    """
    floats("params", params)
    if n < 1:
        raise ValueError(f"{n=}, expected at least 1")
    keys = jax.random.split(key, n)

    def objective(params: Params) -> jax.Array:
        def value(key: jax.Array) -> jax.Array:
            return scalar("f(x)", f(sample_fn(params, key)))

        return jnp.mean(jax.vmap(value)(keys))

    return jax.grad(objective)(params)


def relax_gradient(
    key: jax.Array,
    logits: jax.Array,
    f: Callable[[jax.Array], jax.Array],
    surrogate: Callable[[jax.Array], jax.Array],
    *,
    kind: Kind = "categorical",
) -> jax.Array:
    r"""RELAX: the score function with a control variate that is differentiated.

    .. math::
        (f(b) - c(\tilde z)) \nabla \log p(b) + \nabla c(z) - \nabla c(\tilde z),
        \qquad b = H(z), \; z \sim p(z), \; \tilde z \sim p(z | b)

    Unbiased for every surrogate c; the closer c(z) is to f(b), the less variance. The
    two relaxed samples are tied, as in Tucker's code: :math:`\tilde z` has the value
    of z, and differs in its derivative, which holds b and the noise fixed. So c is
    evaluated once; untied ones had the same variance within a quarter (measured).

    The estimate is differentiable in what `surrogate` closes over, so that its square
    can be minimised, as Grathwohl et al. do.

    Args:
      key: `[]` typed key, consumed here.
      logits: `[...]` of independent bits, or `[A]`.
      f: `b -> []`, where b is like `logits`: 0 or 1, or one-hot. Need not be
        differentiable.
      surrogate: `z -> []`, differentiable, where z is like `logits`: `b = z > 0`, or
        the one-hot of its argmax. Of a network, or :func:`rebar_surrogate`.
      kind: "bernoulli" or "categorical".

    Returns:
      The estimate of the gradient in `logits`; `jax.vjp` takes it to parameters.

    Raises:
      ValueError: unknown `kind`, `logits` not floating or not of its shape, `f` not
        returning a scalar.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import relax_gradient
      >>> q = jnp.array([1.0, 3.0])
      >>> key, logits = jax.random.key(0), jnp.zeros(2)
      >>> relax_gradient(key, logits, lambda b: q @ b, lambda z: 0.1 * jnp.sum(z)).shape
      (2,)

    References:
      Grathwohl et al. (2018), section 3, https://arxiv.org/abs/1711.00123
      Tucker et al. (2017), section 3, https://arxiv.org/abs/1703.07370
    """
    _check_kind(kind)
    if not jnp.issubdtype(jax.typeof(logits).dtype, jnp.floating):
        given = jax.typeof(logits).str_short()
        raise ValueError(f"logits: expected a floating array, got {given}")
    if kind == "categorical" and (jnp.ndim(logits) != 1 or not logits.size):
        raise ValueError(f"logits[A] with A > 0, got {jnp.shape(logits)}")
    if kind == "bernoulli":
        z = logits + jax.random.logistic(key, logits.shape, logits.dtype)
        b, p = (z > 0).astype(z.dtype), jax.nn.sigmoid(logits)
    else:
        noise = jax.random.gumbel(key, logits.shape, logits.dtype)
        z, p = jax.nn.log_softmax(logits) + noise, jax.nn.softmax(logits)
        b = jax.nn.one_hot(jnp.argmax(z), z.size, dtype=z.dtype)
    c, dc = jax.value_and_grad(surrogate)(z)
    # What of dc/dz is left when the derivative of z at fixed b is taken off.
    if kind == "bernoulli":
        not_explained = 1 + jnp.expm1(-jnp.abs(z)) * jnp.where(b > 0, p, 1 - p)
        correction = dc * not_explained
    else:
        not_explained = jnp.exp(z - jnp.max(z))
        correction = dc * not_explained - p * jnp.sum(dc * not_explained)
    return (scalar("f(b)", f(b)) - c) * (b - p) + correction


def rebar_surrogate(
    f: Callable[[jax.Array], jax.Array],
    temperature: ArrayLike = 0.5,
    scale: ArrayLike = 1.0,
    *,
    kind: Kind = "categorical",
) -> Callable[[jax.Array], jax.Array]:
    r"""REBAR's control variate for :func:`relax_gradient`: f of the relaxed sample.

    .. math:: c(z) = \eta \, f(\sigma(z / \tau))

    with the softmax for :math:`\sigma` if categorical.

    Args:
      f: `b -> []`, differentiable, defined between the hard values as well.
      temperature: `[]`, above 0; differentiable.
      scale: `[]`, eta; differentiable.
      kind: "bernoulli" or "categorical".

    Returns:
      `z -> []`

    Raises:
      ValueError: unknown `kind`, or a Python number for `temperature` that is not
        positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import rebar_surrogate
      >>> rebar_surrogate(jnp.sum, scale=2.0, kind="bernoulli")(jnp.zeros(3))
      Array(3., dtype=float32)

    References:
      Tucker et al. (2017), section 3, https://arxiv.org/abs/1703.07370
    """
    _check_kind(kind)
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"{temperature=}, expected a positive number")
    relax = jax.nn.sigmoid if kind == "bernoulli" else jax.nn.softmax
    return lambda z: jnp.multiply(scale, f(relax(z / temperature)))


def variance_table(
    estimators: Mapping[str, Callable[[Params, jax.Array], G]],
    params: Params,
    key: jax.Array,
    num_samples: int,
) -> dict[str, dict[str, G]]:
    r"""Mean and variance of several gradient estimators, on the same keys.

    .. math::
        \bar g = \frac{1}{N} \sum_n g_n, \qquad
        \frac{1}{N - 1} \sum_n (g_n - \bar g)^2

    Args:
      estimators: by name, `(params, key) -> gradient`, any tree of arrays.
      params: handed to each.
      key: `[]` typed key, consumed here.
      num_samples: N, at least 2; all N gradients are in memory at once.

    Returns:
      By name, "mean" and "variance" of every element, like the gradient; the standard
      error of the mean is `sqrt(variance / num_samples)`.

    Raises:
      ValueError: `num_samples` below 2.

    Example:
      >>> import jax
      >>> from rljax.autodiff import variance_table
      >>> estimators = {"exact": lambda params, key: 2 * params}
      >>> variance_table(estimators, 1.5, jax.random.key(0), 10)["exact"]["mean"]
      Array(3., dtype=float32)

    References:
      Mohamed et al. (2020), section 3, https://arxiv.org/abs/1906.10652
    """
    if num_samples < 2:
        raise ValueError(f"{num_samples=}, expected at least 2")
    keys = jax.random.split(key, num_samples)
    table = {}
    for name, estimator in estimators.items():
        gradients = jax.jit(jax.vmap(estimator, (None, 0)))(params, keys)
        table[name] = {
            "mean": jax.tree.map(lambda g: jnp.mean(g, 0), gradients),
            "variance": jax.tree.map(lambda g: jnp.var(g, 0, ddof=1), gradients),
        }
    return table


def _check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"{kind=}, expected one of {get_args(Kind)}")


def _check_steps(log_probs: jax.Array, **others: jax.Array | None) -> None:
    """Raise ValueError unless all are `[T]` of one floating dtype, T > 0."""
    given = {"log_probs": log_probs, **others}
    types = {name: jax.typeof(x) for name, x in given.items() if x is not None}
    first = types["log_probs"]
    if (
        first.ndim != 1
        or first.size == 0
        or not jnp.issubdtype(first.dtype, jnp.floating)
        or {(x.shape, x.dtype) for x in types.values()} != {(first.shape, first.dtype)}
    ):
        text = ", ".join(f"{name} {x.str_short()}" for name, x in types.items())
        raise ValueError(
            f"expected arrays [T] of one floating dtype, T > 0, got {text}"
        )


def _discount_weights(log_probs: jax.Array, discounts: ArrayLike) -> jax.Array:
    """`[T]` products of the discounts before each step."""
    shape = jnp.shape(discounts)
    if shape not in ((), log_probs.shape):
        raise ValueError(f"discounts[T] or [] with T={log_probs.size}, got {shape}")
    discounts = jnp.broadcast_to(
        jnp.asarray(discounts, log_probs.dtype), log_probs.shape
    )
    first = jnp.ones_like(discounts[:1])
    return jnp.cumprod(jnp.concatenate([first, discounts[:-1]]))
