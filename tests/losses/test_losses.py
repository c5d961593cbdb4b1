"""Every public loss: values, gradients in each mode, meta-gradients, checks.

One table, from the `cases_*.py` files, is swept by every test here. What is particular
to a loss is tested in the file of its module.
"""

import functools
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_origin

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from absl.testing import parameterized
from jax.extend.core import jaxprs_in_params

from rljax import _shapes, losses

from . import (
    cases_basic,
    cases_distributional,
    cases_gradient_td,
    cases_iql,
    cases_mpo,
    cases_multi_step,
    cases_off_policy_returns,
    cases_one_step,
    cases_policy_gradient,
    cases_returns,
    cases_sac,
    cases_td3,
    cases_transformed_returns,
    cases_transforms,
    cases_vtrace,
)
from .loss_case import (
    META,
    SIZES,
    Case,
    call,
    draw,
    draw_numpy,
    jitted,
    kind,
    leaf_sum,
    shape,
    split,
)

CASES: dict[str, Case] = {
    **cases_returns.CASES,
    **cases_off_policy_returns.CASES,
    **cases_transformed_returns.CASES,
    **cases_vtrace.CASES,
    **cases_one_step.CASES,
    **cases_multi_step.CASES,
    **cases_gradient_td.CASES,
    **cases_distributional.CASES,
    **cases_policy_gradient.CASES,
    **cases_sac.CASES,
    **cases_td3.CASES,
    **cases_iql.CASES,
    **cases_mpo.CASES,
    **cases_transforms.CASES,
    **cases_basic.CASES,
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
FEW = {  # of every file and way to compute: the slow tests do the same for all others
    *("lambda_returns", "general_off_policy_returns_from_q_and_v"),
    *("vtrace_td_error_and_advantage", "transformed_n_step_returns"),
    *("td_learning", "soft_q_learning", "retrace", "gradient_td_loss"),
    *("categorical_td_learning", "quantile_q_learning"),
    *("policy_gradient_loss", "awr_loss", "dpg_loss", "sac_learning"),
    *("compute_parametric_kl_penalty_and_dual_loss", "signed_hyperbolic"),
    *("vmpo_compute_weights_and_temperature_loss", "batched_index"),
}
STOPS = ("bootstrap", "target", "none")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # of one float32 computation to another


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def sweep(condition=lambda case: True, fast=frozenset(CASES)):
    """Parametrize by the names of all cases, or of those that fulfil a condition.

    Tests of others than the `fast` ones are slow. The scope puts the tests of a case
    one after the other: they share its programs.
    """
    names = [
        pytest.param(name, marks=() if name in fast else pytest.mark.slow)
        for name, case in CASES.items()
        if condition(case)
    ]
    return pytest.mark.parametrize("name", names, scope="module")


def modes(case):
    """The mode by default, which is "bootstrap", and the others."""
    return [{}, {"stop": "target"}, {"stop": "none"}] if case.stops else [{}]


def hyperparameters(case):
    return [k for k in case.live + case.always if kind(case, k) in META]


def finite_differences(f, x, h=1e-6):
    """Central differences of the scalar `f` in every element of a dict's arrays."""
    differences = {}
    for k, v in x.items():
        differences[k] = np.zeros(np.shape(v))
        for i in np.ndindex(np.shape(v)):
            step = np.zeros(np.shape(v))
            step[i] = h
            up, down = f(x | {k: v + step}), f(x | {k: v - step})
            differences[k][i] = (up - down) / (2 * h)
    return differences


# What the functions are.


def test_every_export_is_swept():
    assert sorted(losses.__all__) == sorted([*CASES, *NOT_SWEPT])
    assert len(set(losses.__all__)) == len(losses.__all__)


FUNCTIONS = [n for n in losses.__all__ if inspect.isfunction(getattr(losses, n))]


DECLARED = [n for n in FUNCTIONS if hasattr(getattr(losses, n), "declared")]
GLOSSARY = _shapes.entries(losses.__doc__ or "")


def own_entries(name):
    """What the source says of the arguments, without the glossary."""
    source = inspect.getdoc(getattr(losses, name).__wrapped__) or ""
    _, _, after = source.partition("\nArgs:\n")
    return _shapes.entries(after.partition("\n\n")[0])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_is_complete(name):
    """As `help` shows it: every parameter with its shape and what it is."""
    f = getattr(losses, name)
    doc = inspect.getdoc(f) or ""
    sections = ["Args:", "Returns:", "Raises:", "Example:", "References:"]
    places = [doc.find(f"\n{section}\n") for section in (*sections, "Differs from:")]
    assert -1 not in places and places == sorted(places)
    assert ".. math::" in doc and ">>> " in doc and "http" in doc
    shapes = {}
    for word in getattr(f, "declared", "").split():
        argument, axes = re.findall(r"^(\w+)\[(.*?)\]", word)[0]
        shapes[argument] = f"`[{axes.replace(',', ', ')}]`"
    parameters = inspect.signature(f).parameters.values()
    for p in parameters:
        start = f"\n  {str(p).split(':')[0]}: {shapes.get(p.name, '')}"
        assert start in doc
        assert doc.partition(start)[2][:6].strip(), p  # not the shape alone
    for p in parameters:
        if get_origin(p.annotation) is Literal:
            assert re.search(rf"\n  ValueError: unknown .*`{p.name}`", doc)


@pytest.mark.parametrize("name", DECLARED)
def test_the_source_says_nothing_twice(name):
    """Neither the shapes that are declared, nor what the glossary explains."""
    declared = re.findall(r"(\w+)\[", getattr(losses, name).declared)
    for argument, text in own_entries(name).items():
        assert not (argument in declared and text.startswith("`["))
        assert text != GLOSSARY.get(argument)


def test_the_glossary_explains_what_losses_share():
    used = {
        parameter
        for name in DECLARED
        for parameter in inspect.signature(getattr(losses, name)).parameters
        if parameter not in own_entries(name)
    }
    first = re.findall(r"^  (\w+)(?:, \w+)*: ", losses.__doc__ or "", re.M)
    assert first == sorted(first)
    # Each loss says itself what "bootstrap" stops; the glossary, when to choose which.
    assert set(GLOSSARY) == used | {"stop"} and "stop" not in used
    assert {"r_t", "discount_t", "lambda_", "rho_tm1", "q_tm1"} <= used


@sweep(lambda case: hasattr(case.fn, "declared"))
def test_what_is_declared_is_in_the_table(name):
    case = CASES[name]
    words = re.findall(r"(\w+)\[(.*?)\](\|\[\])?:?(\w*)", case.fn.declared)
    for argument, axes, or_scalar, type_ in words:
        if argument not in case.args:
            assert argument in {*case.static, "sample_mask", "alpha_c"}
            continue
        rank = len(shape(case, argument))
        assert "..." in axes or rank == (len(axes.split(",")) if axes and rank else 0)
        assert rank or or_scalar or not axes
        assert (type_ == "int") == (kind(case, argument) == "action")
        assert bool(or_scalar) == (argument in case.scalar or (axes != "" and not rank))


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


# A case is compiled once in each float type, and its results are kept.


class Float64(NamedTuple):
    """All that a case gives for one draw of its arguments, as numpy arrays."""

    x: dict[str, np.ndarray]
    values: list[Any]  # of the `modes`
    gradients: list[dict[str, np.ndarray]]  # of the `modes`, of `leaf_sum`
    from_numpy: Any  # by default, where the arguments of seed 0 are numpy arrays
    scalars: dict[str, tuple[Any, Any]]  # by argument: of 0.3, of 0.3 at each step


@functools.cache
def in_float64(name):
    """Returns the results of five seeds."""
    case = CASES[name]

    def value_and_gradient(x, mode):
        floats, integers = split(case, x)

        def scored(floats):
            x = floats | integers
            out = call(case, x, **mode)
            return leaf_sum(case.target(out, x)), out

        (_, out), gradient = jax.value_and_grad(scored, has_aux=True)(floats)
        return out, gradient

    def with_scalar(x, argument):
        many = jnp.full_like(x[argument], 0.3)
        return call(case, x | {argument: 0.3}), call(case, x | {argument: many})

    with jax.enable_x64(True):
        draws = [draw_numpy(case, seed) for seed in range(5)]

        @jax.jit
        def evaluate(x):
            each = [value_and_gradient(x, mode) for mode in modes(case)]
            return {
                "values": [out for out, _ in each],
                "gradients": [gradient for _, gradient in each],
                "from_numpy": call(case, draws[0]),
                "scalars": {k: with_scalar(x, k) for k in case.scalar},
            }

        return [Float64(x, **jax.device_get(evaluate(x))) for x in draws]


class Float32(NamedTuple):
    """Results of a thousand draws of a case's arguments, as numpy arrays."""

    vmapped: Any  # the draws of `in_float64` first
    ours: Any  # in rlax's form, and of arguments that rlax can be given
    theirs: Any


@functools.cache
def in_float32(name):
    case = CASES[name]
    first = [draw_numpy(case, seed) for seed in range(5)]
    rest = draw_numpy(case, seed=5, batch=(995,))
    x = {k: np.concatenate([[y[k] for y in first], rest[k]]) for k in rest}

    def theirs(x):
        return case.rlax(**case.rlax_input(x), **case.static)

    @jax.jit
    def evaluate(x):
        vmapped = ours = jax.vmap(functools.partial(call, case))(x)
        if not case.rlax:
            return vmapped, None, None
        if case.rlax_input is not Case._field_defaults["rlax_input"]:
            ours = jax.vmap(lambda x: call(case, case.rlax_input(x)))(x)
        return vmapped, jax.vmap(case.as_rlax)(ours), jax.vmap(theirs)(x)

    return Float32(*jax.device_get(evaluate(x)))


# Values.


@sweep()
def test_equals_its_definition(name):
    case = CASES[name]
    for results in in_float64(name):
        expected = as_tuple(case.oracle(**results.x, **case.static))
        leaves = tuple(jax.tree.leaves(results.values[0]))
        chex.assert_trees_all_equal_structs(leaves, expected)
        for a, b in zip(leaves, expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def as_tuple(x):
    return tuple(x) if isinstance(x, tuple) else (x,)


@sweep(lambda case: case.rlax)
def test_equals_rlax_on_a_thousand_inputs(name):
    results = in_float32(name)
    ours, theirs = jax.tree.leaves(results.ours), jax.tree.leaves(results.theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == 1000
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@sweep(lambda case: case.rlax_stops, fast=FEW)
def test_gradients_equal_rlax(name):
    """In every argument, under the two modes that rlax has."""
    case = CASES[name]
    floats, integers = split(case, draw_numpy(case))

    def ours(floats, stop):
        x = case.rlax_input(floats | integers)
        return leaf_sum(case.as_rlax(call(case, x, stop=stop)))

    def theirs(floats, flag):
        x = case.rlax_input(floats | integers)
        return leaf_sum(case.rlax(**x, **case.static, stop_target_gradients=flag))

    @jax.jit
    def gradients(floats):
        return [
            (jax.grad(ours)(floats, stop), jax.grad(theirs)(floats, flag))
            for stop, flag in (("target", True), ("none", False))
        ]

    for g in gradients(floats):
        chex.assert_trees_all_close(*g, **CLOSE)


@sweep(lambda case: case.stops)
def test_modes_have_the_same_value(name):
    for results in in_float64(name):
        chex.assert_trees_all_close(*results.values, rtol=1e-14, atol=1e-15)


@sweep(lambda case: case.scalar)
def test_scalars_equal_sequences(name):
    for results in in_float64(name):
        for argument in CASES[name].scalar:
            chex.assert_trees_all_close(*results.scalars[argument])


@sweep()
def test_takes_numpy_arrays(name):
    results = in_float64(name)[0]
    chex.assert_trees_all_close(results.from_numpy, results.values[0], **CLOSE)


# Gradients.


@sweep(lambda case: case.smooth)
def test_gradients_of_each_mode(name):
    """What a mode stops is exactly 0, what it leaves is the definition's difference."""
    case = CASES[name]
    results = in_float64(name)[4]  # some terms are clipped
    stopped = {"target": case.network + case.live}
    stopped["bootstrap"] = case.network if case.stops else ()

    def defined(floats):
        x = results.x | floats
        leaves = as_tuple(case.oracle(**x, **case.static))
        out = jax.tree.unflatten(jax.tree.structure(results.values[0]), leaves)
        leaves = jax.tree.leaves(case.target(out, x))
        return sum(np.sum(np.sin(leaf)) for leaf in leaves)  # as `leaf_sum`

    fd = finite_differences(defined, split(case, results.x)[0])
    for mode, gradients in zip(modes(case), results.gradients, strict=True):
        for argument, g in gradients.items():
            none = argument not in case.always + case.network + case.live
            if none or argument in stopped.get(mode.get("stop", "bootstrap"), ()):
                np.testing.assert_array_equal(g, np.zeros_like(g), argument)
            else:
                assert np.abs(g).max() > 1e-3, argument
                np.testing.assert_allclose(g, fd[argument], 1e-5, 1e-7, argument)


@sweep(lambda case: case.target is not Case._field_defaults["target"])
def test_gradient_of_the_prediction(name, x64):
    """What is subtracted has the gradient -1, and nothing else has one."""
    case = CASES[name]
    x = draw_numpy(case)

    def errors(v, stop):
        return jax.tree.leaves(call(case, x | {"v_tm1": v}, stop=stop))[0]

    @jax.jit
    def slopes(v):
        return [jax.jacobian(errors)(v, stop) for stop in ("bootstrap", "target")]

    for slope in slopes(x["v_tm1"]):
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
    """Inner updates by SGD on a loss of linear networks; eta are hyperparameters.

    Of three transitions, so that one of them can end an episode. A trajectory, of
    which the discount is a sequence, has an end in its midst.
    """

    def __init__(self, case):
        self.case, rng = case, np.random.default_rng(5)
        discounts = [shape(case, k) for k in case.args if kind(case, k) == "discount"]
        self.batch = (3,) if () in discounts else ()
        self.x = draw_numpy(case, seed=4, batch=self.batch)
        self.eta = {k: np.array(rng.uniform(0.5, 0.9)) for k in hyperparameters(case)}
        self.weights = {
            k: 0.5 * rng.normal(size=(*self.x[k].shape, PARAMS))
            for k in case.always + case.network
            if k not in self.eta
        }
        self.predict = rng.normal(size=(*self.batch, PARAMS))
        self.p = rng.normal(size=PARAMS)

    def loss(self, p, boot, eta, stop):
        case, x = self.case, dict(self.x)
        for k, w in self.weights.items():
            x[k] = moved(x[k], w @ (p if k in case.always else boot), kind(case, k))
        for k, value in eta.items():
            going_on = np.ones(x[k].shape)
            if kind(case, k) == "discount":
                going_on[1] = 0.0
            x[k] = value * going_on
        mode = {"stop": stop} if case.stops else {}

        def target(x):
            out = case.target(call(case, x, **mode), x)
            return [jnp.mean(y) for y in jax.tree.leaves(out)]

        out = jax.vmap(target)(x) if self.batch else target(x)
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

        p, _ = jax.lax.scan(step, self.p, np.arange(5))
        return jnp.sum(jnp.sin(p))

    def outer_of_mode(self, eta, stop):
        """A score after one update, and the updated parameters."""
        p = self.step(self.p, eta, stop)
        return jnp.sum(jnp.sin(p)), p


class MetaGradients(NamedTuple):
    """Meta-gradients of a case as numpy arrays, by its hyperparameters."""

    exact: list[dict[str, np.ndarray]]  # through 1, 2 and 5 updates
    differences: list[dict[str, np.ndarray]]  # of the same
    of_modes: list[tuple[dict[str, np.ndarray], np.ndarray]]  # and updated parameters


@functools.cache
def meta_gradients(name):
    case = CASES[name]
    with jax.enable_x64(True):
        program = Program(case)

        @jax.jit
        def evaluate(eta, num_steps):
            of_mode = jax.grad(program.outer_of_mode, has_aux=True)
            return (
                jax.value_and_grad(program.outer)(eta, num_steps),
                [of_mode(eta, stop) for stop in STOPS if case.stops],
            )

        def outer(eta, num_steps):
            return float(evaluate(eta, num_steps)[0][0])

        exact, differences, eta = [], [], program.eta
        for k in (1, 2, 5):
            (_, gradient), of_modes = jax.device_get(evaluate(eta, k))
            exact.append(gradient)
            differences.append(
                finite_differences(functools.partial(outer, num_steps=k), eta)
            )
        return MetaGradients(exact, differences, of_modes)


@sweep(lambda case: case.smooth and hyperparameters(case), fast=FEW)
def test_meta_gradients_through_inner_updates(name):
    """Against finite differences in every hyperparameter, through K = 1, 2, 5 steps."""
    results = meta_gradients(name)
    for g, fd in zip(results.exact, results.differences, strict=True):
        assert set(g) == set(hyperparameters(CASES[name]))
        for k in g:
            assert np.abs(fd[k]).min() > 1e-6, k
            np.testing.assert_allclose(g[k], fd[k], 1e-5, 1e-9, k)


@sweep(lambda case: case.smooth and case.stops and hyperparameters(case), fast=FEW)
def test_meta_gradients_of_each_mode(name):
    """Through one update: the same one; "bootstrap" is exact and "target" blind."""
    case, (bootstrap, target, none) = CASES[name], meta_gradients(name).of_modes
    chex.assert_trees_all_close(bootstrap, none, rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(target[1], none[1], rtol=1e-10, atol=1e-12)
    for k in set(hyperparameters(case)) & set(case.live):
        np.testing.assert_array_equal(target[0][k], 0.0, k)


# Transformations.


@sweep()
def test_vmap_equals_a_loop(name):
    """And float32 equals float64."""
    vmapped = in_float32(name).vmapped
    for i, results in enumerate(in_float64(name)):
        one = jax.tree.map(lambda x, i=i: x[i], vmapped)
        for a, b in zip(*map(jax.tree.leaves, (one, results.values[0])), strict=True):
            assert (a.dtype, b.dtype) == (jnp.float32, jnp.float64)
            np.testing.assert_allclose(a, b, **CLOSE)


class Variants(chex.TestCase):
    """With and without jit."""

    def check(self, name):
        case = CASES[name]
        f = functools.partial(call, case)
        x = draw_numpy(case, batch=(4,))
        many = self.variant(jax.vmap(f))(x)
        each = [self.variant(f)({k: v[i] for k, v in x.items()}) for i in range(4)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        chex.assert_trees_all_close(many, stacked, **CLOSE)


class FewVariantsTest(Variants):
    """Of the `FEW`."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*sorted(FEW))
    def test_vmap_equals_a_loop(self, name):
        self.check(name)


@pytest.mark.slow
class OtherVariantsTest(Variants):
    """Of all other cases than the `FEW`."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*(name for name in CASES if name not in FEW))
    def test_vmap_equals_a_loop(self, name):
        self.check(name)


@sweep()
def test_keeps_the_dtype(name, x64):
    """Whatever it is, and with Python floats for scalars."""
    case = CASES[name]
    floats, integers = split(case, draw_numpy(case))
    scalars = [k for k, v in floats.items() if kind(case, k) in META and not v.ndim]
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        x = {k: v.astype(dtype) for k, v in floats.items()} | integers
        for y in (x, x | dict.fromkeys([*case.scalar, *scalars], 0.5)):
            out = jax.eval_shape(functools.partial(call, case), y)
            for leaf in jax.tree.leaves(out):
                assert leaf.dtype == dtype


# Floats of several dtypes, and numbers that are no floats.


def dtypes_inside(jaxpr):
    """The float dtypes of all that a program computes but conversions."""
    found = set()
    for eqn in jaxpr.eqns:
        inner = list(jaxprs_in_params(eqn.params))
        for program in inner:
            found |= dtypes_inside(program)
        if not inner and eqn.primitive.name != "convert_element_type":
            found |= {v.aval.dtype for v in (*eqn.invars, *eqn.outvars)}
    return {dtype for dtype in found if jnp.issubdtype(dtype, jnp.floating)}


@sweep()
def test_mixed_dtypes_are_promoted(name):
    """Each argument in turn in half precision, then all that networks make."""
    case, x = CASES[name], draw_numpy(CASES[name])
    floats = list(split(case, x)[0])
    halves = [{k: jnp.bfloat16} for k in floats] + [{floats[0]: jnp.float16}]
    halves += [dict.fromkeys(case.network, jnp.bfloat16)] if case.network else []
    for half in halves:
        mixed = x | {k: x[k].astype(dtype) for k, dtype in half.items()}
        program, out = jax.make_jaxpr(functools.partial(call, case), return_shape=True)(
            mixed
        )
        wide = jnp.result_type(*(mixed[k] for k in floats))
        assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {wide}
        assert wide != jnp.float32 or dtypes_inside(program.jaxpr) <= {wide}


def test_half_precision_with_single_precision():
    """What is rounded, is rounded before the loss: in it all is float32."""
    q, half = np.float32([[0.3, 1.1], [2.3, 4.7]]), jnp.bfloat16

    def error(q_tm1, q_t, discount):
        return losses.q_learning(q_tm1, 0, np.float32(1.0), discount, q_t)

    @jax.jit
    def values(q):
        low = q.astype(half)
        rounded = low.astype(jnp.float32)
        gradient = jax.grad(error)(low[0], q[1], 0.9)
        return error(low[0], q[1], 0.9), error(rounded[0], q[1], 0.9), gradient

    mixed, plain, gradient = values(q)
    assert mixed.dtype == jnp.float32 and mixed == plain
    assert gradient.dtype == half  # the network's own
    np.testing.assert_array_equal(gradient.astype(jnp.float32), [-1.0, 0.0])


NUMBERS = (1, True, np.int64(1), np.bool_(True), np.float64(1.0), np.array(1))


def is_data(argument):
    """A value of a time step or a target; else, without axes, a hyperparameter."""
    return argument == "target" or argument.endswith(("_t", "_tm1"))


@sweep()
def test_numbers_are_floats(name):
    """Python's and numpy's, and of hyperparameters arrays: a missing ".0" is no bug."""
    case, x = CASES[name], draw_numpy(CASES[name])
    hyper = [k for k in case.scalar if not (is_data(k) and kind(case, k) == "real")]
    floats, _ = split(case, x)
    hyper += [k for k, v in floats.items() if not (v.ndim or is_data(k))]
    data = [k for k, v in floats.items() if not v.ndim and is_data(k)]
    changes = [dict.fromkeys(hyper, n) for n in NUMBERS if hyper]
    changes += [dict.fromkeys(data, n) for n in NUMBERS[:4] if data]
    for change in changes:
        rest = {k: v for k, v in x.items() if k not in change}
        out = jax.eval_shape(lambda rest, c=change: call(case, rest | c), rest)
        assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    if hyper:  # a Python integer becomes an array under jit
        jax.eval_shape(functools.partial(call, case), x | dict.fromkeys(hyper, 1))


def test_integers_have_the_value_of_floats():
    r, v = np.float32([1.0, -2.0, 0.5]), np.float32([0.5, 1.5, -1.0])

    @jax.jit
    def pairs():
        return [
            (f(n), f(float(n)))
            for n in (0, 1, 2)
            for f in (
                lambda n: losses.lambda_returns(r, v, v, n),
                lambda n: losses.quantile_regression_loss(r, v, v, huber_param=n),
                lambda n: losses.clipped_surrogate_pg_loss(r, v, epsilon=n),
                lambda n: losses.q_learning(r, 0, n, n, v),
            )
        ]

    for ours, expected in pairs():
        np.testing.assert_array_equal(ours, expected)


@sweep(lambda case: hasattr(case.fn, "__wrapped__"))
def test_checks_add_nothing_to_a_program(name):
    case, x = CASES[name], draw(CASES[name])
    program, bare = (
        str(jax.make_jaxpr(lambda x, f=f: f(**x, **case.static))(x))
        for f in (case.fn, case.fn.__wrapped__)
    )
    assert program == bare


# Trajectories that are cut.


def traces(case):
    """The arguments that are 0 where a trajectory is cut."""
    return [k for k in ("lambda_", "lambda_t", "c_t") if k in case.args]


def split_by_trace(case):
    """Yields arguments with a trace of 0 at a cut, and those of the two parts."""
    steps = shape(case, "r_t")[0]
    for cut in (1, 3, steps - 1):
        x = draw_numpy(case)
        for k in traces(case):
            x[k][cut - 1] = 0.0

        def part(start, stop, x=x):
            """Arrays with one step less lack the part's last one."""
            return {
                k: v[start : stop - steps + len(v)] if v.ndim else v
                for k, v in x.items()
            }

        yield x, (part(0, cut), part(cut, steps))


def equal_joined(whole, parts):
    for leaf, *each in zip(*map(jax.tree.leaves, (whole, *parts)), strict=True):
        np.testing.assert_allclose(leaf, np.concatenate(each), 1e-10, 1e-12)


@sweep(traces)
def test_a_trace_of_zero_splits_the_trajectory(name, x64):
    """In two parts, each by its definition."""
    case = CASES[name]
    for x, parts in split_by_trace(case):
        whole = jitted(case.fn)(**x, **case.static)
        equal_joined(whole, [case.oracle(**y, **case.static) for y in parts])


@sweep(traces, fast={"tree_backup", "vtrace_td_error_and_advantage"})
def test_parts_of_any_length(name, x64):
    """As above, but the parts too are computed by the package, from 1 to 5 steps."""
    case = CASES[name]
    for x, parts in split_by_trace(case):
        whole = jitted(case.fn)(**x, **case.static)
        equal_joined(whole, [jitted(case.fn)(**y, **case.static) for y in parts])


# Refusals.


def actions(case):
    return [k for k in case.args if kind(case, k) == "action"]


@sweep(actions)
def test_an_action_out_of_range_is_nan(name):
    case = CASES[name]
    for argument in actions(case):
        for action in (-1, SIZES["A"], SIZES["A"] + 4):
            x = draw_numpy(case)
            x[argument][... if x[argument].ndim == 0 else 0] = action
            out = jitted(case.fn)(**x, **case.static)
            assert np.isnan(np.ravel(out)[0]), (argument, action)


@sweep(lambda case: case.stops)
def test_unknown_stop(name):
    case = CASES[name]
    for stop in ("Target", "", None, True, False):
        with pytest.raises(ValueError, match="bootstrap.*target.*none") as error:
            call(case, draw_numpy(case), stop=stop)
        assert f"stop={stop!r}" in str(error.value)


def refuses(case, x):
    with pytest.raises(AssertionError) as error:
        call(case, x)
    for argument, value in x.items():
        assert f"{argument} {jax.typeof(value).str_short()}" in str(error.value)
    return str(error.value)


@sweep()
def test_wrong_shapes_are_refused(name):
    """Every way to be broadcast in silence; all arguments are named."""
    case, x = CASES[name], draw_numpy(CASES[name])
    for argument in x:
        right = shape(case, argument)
        wrong = [] if argument in case.any_shape else [(2, *right)]
        if argument not in (*case.any_shape, *case.broadcast):
            wrong.append((1,))
        if right and argument not in (*case.scalar, *case.any_shape, *case.broadcast):
            wrong.append(())
        for shape_ in wrong:
            refuses(case, x | {argument: np.ones(shape_, x[argument].dtype)})


@sweep()
def test_wrong_shapes_are_refused_under_jit(name):
    case, x = CASES[name], draw_numpy(CASES[name])
    argument = next((k for k in x if k not in case.any_shape), None)
    if argument:
        x[argument] = np.ones((2, *shape(case, argument)), x[argument].dtype)
        with pytest.raises(AssertionError, match=argument):
            jax.jit(functools.partial(call, case))(x)


def test_no_array_is_named():
    with pytest.raises(TypeError, match="v_t: expected an array, got None"):
        losses.td_learning(0.5, 1.0, 0.9, None)


@sweep()
def test_wrong_dtypes_are_refused(name):
    """First comes the name of the argument that is wrong."""
    case, x = CASES[name], draw_numpy(CASES[name])
    for argument, value in x.items():
        if kind(case, argument) == "action":
            wrong = [jnp.bool_, jnp.float32]
        elif value.ndim or is_data(argument):
            wrong = [jnp.bool_, jnp.int32]
        else:
            wrong = [jnp.complex64]
        for dtype in wrong:
            message = refuses(case, x | {argument: value.astype(dtype)})
            first, _ = message.split(": expected", 1)
            assert first in (argument, argument.removeprefix("old_"))


# What is told to those who come from rlax.


def test_the_page_for_movers_has_every_difference():
    """Its rows are what the docstrings say, and no others."""
    page = Path(__file__).parents[2] / "docs" / "coming-from-rlax.md"
    lines = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    told = {}
    for name in losses.__all__:
        _, _, text = (inspect.getdoc(getattr(losses, name)) or "").partition(
            "Differs from:"
        )
        text = " ".join(text.partition("\n\n")[0].split())
        text = text.replace(r":math:`L_\eta`", "the temperature's loss")
        if text and "is the same" not in text:
            told[name] = text
    assert lines == [f"| `{name}` | {text} |" for name, text in told.items()]
    assert len(told) > 50
