"""Every public loss: values, gradients in each mode, meta-gradients, checks.

One table, from the `cases_*.py` files, is swept by every test here. What is particular
to a loss is tested in the file of its module.
"""

import functools
import inspect
import subprocess
import sys
import textwrap

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from absl.testing import parameterized

from rljax import losses

from . import (
    cases_distributional,
    cases_mpo,
    cases_policy,
    cases_returns,
    cases_transforms,
    cases_value,
)
from .loss_case import META, Case, call, draw, kind, leaf_sum, shape, split

CASES: dict[str, Case] = {
    **cases_returns.CASES,
    **cases_value.CASES,
    **cases_distributional.CASES,
    **cases_policy.CASES,
    **cases_mpo.CASES,
    **cases_transforms.CASES,
}
NOT_SWEPT = {  # tested in the files of their modules
    # Types and constants.
    *("LagrangePenalty", "MpoOutputs", "PopArtOutput", "PopArtState", "VTraceOutput"),
    *("TxPair", "IDENTITY_PAIR", "SIGNED_HYPERBOLIC_PAIR", "SIGNED_LOGP1_PAIR"),
    *("DISCOUNT_TRANSFORM_PAIR", "HYPERBOLIC_SIN_PAIR"),
    # Functions that make functions.
    *("compose_tx", "muzero_pair", "twohot_pair", "unbiased_transform_pair", "popart"),
    # Functions of random keys, masks, states or trees of parameters.
    *("add_dirichlet_noise", "add_gaussian_noise", "add_ornstein_uhlenbeck_noise"),
    *("td3_smoothed_action", "masked_mean", "art", "pop", "normalize", "unnormalize"),
    "unnormalize_linear",
}
STOPS = ("bootstrap", "target", "none")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # of one float32 computation to another

# Compilation is most of the time here, and half of it XLA's optimisation.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def sweep(condition=lambda case: True):
    """Parametrize by the names of all cases, or of those that fulfil a condition."""
    names = [name for name, case in CASES.items() if condition(case)]
    return pytest.mark.parametrize("name", names)


def modes(case):
    return [{"stop": stop} for stop in STOPS] if case.stops else [{}]


def hyperparameters(case):
    return [k for k in case.live + case.always if kind(case, k) in META]


def finite_differences(f, x, h=1e-6):
    """Central differences of the scalar `f` in every element of the tree `x`."""
    flat, unravel = jax.flatten_util.ravel_pytree(x)

    def difference(step):
        return (f(unravel(flat + step)) - f(unravel(flat - step))) / (2 * h)

    return unravel(jit(jax.vmap(difference))(h * jnp.eye(flat.size)))


# What the functions are.


def test_every_export_is_swept():
    assert sorted(losses.__all__) == sorted([*CASES, *NOT_SWEPT])
    assert len(set(losses.__all__)) == len(losses.__all__)


FUNCTIONS = [n for n in losses.__all__ if inspect.isfunction(getattr(losses, n))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_is_complete(name):
    doc = inspect.getdoc(getattr(losses, name)) or ""
    sections = ["Args:", "Returns:", "Raises:", "Example:", "References:"]
    for section in (*sections, "Differs from:"):
        assert f"\n{section}" in doc, section
    assert ".. math::" in doc and ">>> " in doc and "http" in doc
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    missing = [p for p in parameters if f"\n  {str(p).split(':')[0]}: " not in doc]
    assert not missing


@sweep(lambda case: case.stops)
def test_stop_is_keyword_only_with_one_default(name):
    stop = inspect.signature(getattr(losses, name)).parameters["stop"]
    assert (stop.kind, stop.default) == (stop.KEYWORD_ONLY, "bootstrap")


@sweep()
def test_arguments_are_those_of_the_table(name):
    """And in the table's order, so that positional calls are what is tested."""
    case = CASES[name]
    assert not set(case.always) & {*case.network, *case.live}
    assert not set(case.network) & set(case.live)
    assert {*case.always, *case.network, *case.live} <= set(case.args)
    parameters = list(inspect.signature(case.fn).parameters)
    assert [p for p in parameters if p in case.args] == list(case.args)


def test_they_import_alone():
    """Without what the rest of the package needs."""
    program = """
        import sys
        from rljax.losses import q_learning
        loaded = {"gymnax", "flax", "optax", "distrax", "orbax"} & set(sys.modules)
        assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


@pytest.mark.parametrize(
    "name",
    sorted(
        {*CASES, "add_gaussian_noise", "add_dirichlet_noise", "art"}
        & {*dir(rlax)}
        - {"batched_index", "clip_gradient", "transformed_n_step_q_learning"}
        - {
            name
            for name in CASES
            if name.startswith("transformed") and "returns" in name
        }
    ),
)
def test_signature_is_that_of_rlax(name):
    """But for its flag, and `sample_mask` after it, which are keywords here."""
    ours = inspect.signature(getattr(losses, name)).parameters.values()
    theirs = inspect.signature(getattr(rlax, name)).parameters.values()
    keywords = {"stop_target_gradients", "use_stop_gradient", "tx_pair", "sample_mask"}
    positional = [p.name for p in ours if p.kind is not p.KEYWORD_ONLY]
    assert positional == [p.name for p in theirs if p.name not in keywords]


# Values.


@sweep()
@pytest.mark.parametrize("seed", range(5))
def test_equals_its_definition(name, seed, x64):
    case = CASES[name]
    x = draw(case, seed)
    expected = case.oracle(**{k: np.asarray(v) for k, v in x.items()}, **case.static)
    out = call(case, x)
    chex.assert_trees_all_equal_structs(tuple(jax.tree.leaves(out)), as_tuple(expected))
    for a, b in zip(jax.tree.leaves(out), as_tuple(expected), strict=True):
        assert a.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def as_tuple(x):
    return tuple(x) if isinstance(x, tuple) else (x,)


@sweep(lambda case: case.rlax)
def test_equals_rlax_on_a_thousand_inputs(name):
    case = CASES[name]
    x = draw(case, seed=1, batch=(1000,))

    @jit
    @jax.vmap
    def both(x):
        x = case.rlax_input(x)
        return case.as_rlax(call(case, x)), case.rlax(**x, **case.static)

    ours, theirs = both(x)
    assert len(jax.tree.leaves(ours)) == len(jax.tree.leaves(theirs))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@sweep(lambda case: case.rlax_stops)
@pytest.mark.parametrize("stop, flag", [("target", True), ("none", False)])
def test_gradients_equal_rlax(name, stop, flag):
    """In every argument, under the two modes that rlax has."""
    case = CASES[name]
    floats, integers = split(case, draw(case))

    def ours(floats):
        x = case.rlax_input(floats | integers)
        return leaf_sum(case.as_rlax(call(case, x, stop=stop)))

    def theirs(floats):
        x = case.rlax_input(floats | integers)
        return leaf_sum(case.rlax(**x, **case.static, stop_target_gradients=flag))

    g = jit(lambda x: (jax.grad(ours)(x), jax.grad(theirs)(x)))(floats)
    chex.assert_trees_all_close(*g, **CLOSE)


@sweep(lambda case: case.stops)
def test_modes_have_the_same_value(name):
    case = CASES[name]
    x = draw(case)
    values = [call(case, x, **mode) for mode in modes(case)]
    chex.assert_trees_all_equal(*values, call(case, x))


@sweep(lambda case: case.scalar)
def test_scalars_equal_sequences(name, x64):
    case = CASES[name]
    for argument in case.scalar:
        x = draw(case)
        many = jnp.full_like(x[argument], 0.3)
        chex.assert_trees_all_close(
            call(case, x | {argument: 0.3}), call(case, x | {argument: many})
        )


# Gradients.


@sweep(lambda case: case.smooth)
def test_gradients_of_each_mode(name, x64):
    """What a mode stops is exactly 0, what it leaves is the finite difference."""
    case = CASES[name]
    floats, integers = split(case, draw(case, seed=4))  # some terms are clipped
    stopped = {"bootstrap": case.network, "target": case.network + case.live}

    def score(floats, mode):
        x = floats | integers
        return leaf_sum(case.target(call(case, x, **mode), x))

    unstopped = {"stop": "none"} if case.stops else {}
    fd = finite_differences(lambda floats: score(floats, unstopped), floats)
    grad = jit(lambda floats: [jax.grad(score)(floats, mode) for mode in modes(case)])
    for mode, gradients in zip(modes(case), grad(floats), strict=True):
        for argument, g in gradients.items():
            none = argument not in case.always + case.network + case.live
            if none or argument in stopped.get(mode.get("stop"), ()):
                np.testing.assert_array_equal(g, np.zeros_like(g), argument)
            else:
                assert np.abs(g).max() > 1e-3, argument
                np.testing.assert_allclose(g, fd[argument], 1e-5, 1e-7, argument)


@sweep(lambda case: case.target is not Case._field_defaults["target"])
@pytest.mark.parametrize("stop", ["bootstrap", "target"])
def test_gradient_of_the_prediction(name, stop, x64):
    """What is subtracted has the gradient -1, and nothing else has one."""
    case = CASES[name]
    x = draw(case)

    def errors(v):
        return jax.tree.leaves(call(case, x | {"v_tm1": v}, stop=stop))[0]

    slope = jax.jacobian(errors)(x["v_tm1"])
    np.testing.assert_allclose(slope, -np.eye(len(x["v_tm1"])), atol=1e-12)


# Meta-gradients through inner updates.


PARAMS = 3


def moved(x, by, kind):
    """An argument that a network makes: `x`, displaced within what it may be."""
    if kind == "simplex":
        return jax.nn.softmax(jnp.log(x) + by)
    if kind in ("ratio", "positive"):
        return x * jnp.exp(by)
    if kind == "log_probability":
        return -jnp.exp(jnp.log(-x) + by)
    if kind in ("probability", "quantile"):
        return jax.nn.sigmoid(jax.scipy.special.logit(x) + by)
    return x + by


class Program:
    """Inner updates by SGD on a loss of linear networks; eta are hyperparameters."""

    def __init__(self, case):
        self.case, rng = case, np.random.default_rng(5)
        self.x = draw(case, seed=4, batch=(3,))
        self.eta = {
            k: jnp.asarray(rng.uniform(0.5, 0.9)) for k in hyperparameters(case)
        }
        self.weights = {
            k: 0.5 * rng.normal(size=(*self.x[k].shape, PARAMS))
            for k in case.always + case.network
            if k not in self.eta
        }
        self.predict = rng.normal(size=(3, PARAMS))
        self.p = jnp.asarray(rng.normal(size=PARAMS))

    def loss(self, p, boot, eta, stop):
        case, x = self.case, dict(self.x)
        for k, w in self.weights.items():
            x[k] = moved(x[k], w @ (p if k in case.always else boot), kind(case, k))
        for k, value in eta.items():  # 0 somewhere, as at an episode's end
            zero = jnp.zeros_like(x[k]).at[1].set(float(kind(case, k) == "discount"))
            x[k] = value * (1.0 - zero)
        mode = {"stop": stop} if case.stops else {}
        out = jax.vmap(lambda x: case.target(call(case, x, **mode), x))(x)
        out = [y.reshape(3, -1).mean(1) for y in jax.tree.leaves(out)]
        if case.loss:
            return sum(jnp.mean(y) for y in out)
        if not case.always:  # a target, for a prediction
            out = [y - self.predict @ p for y in out]
        return sum(0.5 * jnp.mean(y**2) for y in out)

    def step(self, p, eta, stop, rate=0.05):
        """An update, the arguments separated."""
        return p - rate * jax.grad(self.loss)(p, p, eta, stop)

    def outer(self, eta, num_steps):
        """A score after num_steps <= 5 updates by separated arguments alone."""

        def step(p, k):  # masked, so that one compilation does for every number
            return self.step(p, eta, "none", jnp.where(k < num_steps, 0.05, 0.0)), None

        p, _ = jax.lax.scan(step, self.p, jnp.arange(5))
        return jnp.sum(jnp.sin(p))


@sweep(lambda case: case.smooth and hyperparameters(case))
def test_meta_gradients_through_inner_updates(name, x64):
    """Against finite differences in every hyperparameter, through K = 1, 2, 5 steps."""
    program, num_steps = Program(CASES[name]), jnp.array([1, 2, 5])
    g = jit(jax.vmap(jax.grad(program.outer), (None, 0)))(program.eta, num_steps)

    def truth(k):
        return finite_differences(lambda eta: program.outer(eta, k), program.eta)

    fd = jax.vmap(truth)(num_steps)
    for k in program.eta:
        assert np.abs(fd[k]).min() > 1e-6, k
        np.testing.assert_allclose(g[k], fd[k], 1e-5, 1e-9, k)


@sweep(lambda case: case.smooth and case.stops and hyperparameters(case))
def test_meta_gradients_of_each_mode(name, x64):
    """Through one update: the same one; "bootstrap" is exact and "target" blind."""
    case, program = CASES[name], Program(CASES[name])

    def outer(eta, stop):
        p = program.step(program.p, eta, stop)
        return jnp.sum(jnp.sin(p)), p

    both = jit(lambda eta: [jax.grad(outer, has_aux=True)(eta, s) for s in STOPS])
    bootstrap, target, none = both(program.eta)
    chex.assert_trees_all_close(bootstrap, none, rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(target[1], none[1], rtol=1e-10, atol=1e-12)
    for k in set(program.eta) & set(case.live):
        np.testing.assert_array_equal(target[0][k], 0.0, k)


# Transformations.


class TransformationTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*CASES)
    def test_vmap_equals_a_loop(self, name):
        case, f = CASES[name], functools.partial(call, CASES[name])
        x = draw(case, batch=(4,))
        many = self.variant(jax.vmap(f))(x)
        each = [f(jax.tree.map(lambda a, i=i: a[i], x)) for i in range(4)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        chex.assert_trees_all_close(many, stacked, **CLOSE)


@sweep()
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_keeps_the_dtype(name, dtype, x64):
    """Whatever it is, and with Python floats for scalars."""
    case = CASES[name]
    floats, integers = split(case, draw(case))
    x = {k: v.astype(dtype) for k, v in floats.items()} | integers
    x = {k: x[k] for k in case.args}
    scalars = [k for k in x if kind(case, k) in META and not x[k].ndim]
    for y in (x, x | dict.fromkeys([*case.scalar, *scalars], 0.5)):
        for leaf in jax.tree.leaves(jax.eval_shape(functools.partial(call, case), y)):
            assert leaf.dtype == dtype


# Refusals.


@sweep(lambda case: case.stops)
@pytest.mark.parametrize("stop", ["Target", "", None, True, False])
def test_unknown_stop(name, stop):
    with pytest.raises(ValueError, match="bootstrap.*target.*none") as error:
        call(CASES[name], draw(CASES[name]), stop=stop)
    assert f"stop={stop!r}" in str(error.value)


def refuses(case, x):
    with pytest.raises(AssertionError) as error:
        call(case, x)
    for argument, value in x.items():
        assert f"{argument} {jax.typeof(value).str_short()}" in str(error.value)


@sweep()
def test_wrong_shapes_are_refused(name):
    """Every way to be broadcast in silence; all arguments are named."""
    case, x = CASES[name], draw(CASES[name])
    for argument in x:
        right = shape(case, argument)
        wrong = [] if argument in case.any_shape else [(1,), (2, *right)]
        if right and argument not in (*case.scalar, *case.any_shape):
            wrong.append(())
        for shape_ in wrong:
            refuses(case, x | {argument: jnp.ones(shape_, x[argument].dtype)})


@sweep()
def test_wrong_shapes_are_refused_under_jit(name):
    case, x = CASES[name], draw(CASES[name])
    argument = next((k for k in x if k not in case.any_shape), None)
    if argument:
        x[argument] = jnp.ones((2, *shape(case, argument)), x[argument].dtype)
        with pytest.raises(AssertionError, match=argument):
            jax.jit(functools.partial(call, case))(x)


@sweep()
def test_takes_numpy_arrays(name):
    case, x = CASES[name], draw(CASES[name])
    chex.assert_trees_all_close(
        call(case, {k: np.asarray(v) for k, v in x.items()}), call(case, x), **CLOSE
    )


def test_no_array_is_named():
    with pytest.raises(TypeError, match="v_t: expected an array, got None"):
        losses.td_learning(0.5, 1.0, 0.9, None)


@sweep()
def test_wrong_dtypes_are_refused(name):
    case, x = CASES[name], draw(CASES[name])
    for argument, value in x.items():
        if kind(case, argument) == "action":
            wrong = [jnp.bool_, jnp.float32]
        else:
            wrong = [jnp.bool_, jnp.int32]
            wrong += [jnp.bfloat16] if len(split(case, x)[0]) > 1 else []
        for dtype in wrong:
            refuses(case, x | {argument: value.astype(dtype)})
