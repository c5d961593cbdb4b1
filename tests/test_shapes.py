"""Declared arguments: what is checked, promoted and written into docstrings."""

import inspect
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax._shapes import checked, promoted


@checked(
    "q_t[T,A] a_t[T]:int lambda_t[T]|[] scale[]:scalar mask[T]:bool",
    {"a_t": "the action taken.", "q_t": "values.", "lambda_t": "in [0, 1]."},
)
def values(
    q_t,
    a_t,
    lambda_t=1.0,
    *,
    scale=2,
    mask=None,
    stop: Literal["bootstrap", "none"] = "none",
):
    """Values of actions.

    Args:
      q_t: action values.
      scale: a number.
      mask: which count.
      stop: nothing.

    Returns:
      `[T]` values.

    Raises:
      ValueError: never.

    Example:
      None.
    """
    del mask, stop
    return scale * lambda_t * jax.vmap(lambda q, a: q[a])(q_t, a_t)


Q, A = np.float32([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.array([0, 1, 1])


def test_it_is_called_like_the_function():
    parameters = inspect.signature(values).parameters
    assert list(parameters) == ["q_t", "a_t", "lambda_t", "scale", "mask", "stop"]
    assert values.__name__ == "values" and values.declared.startswith("q_t[T,A] ")
    expected = [2.0, 8.0, 12.0]
    for out in (
        values(Q, A),
        values(a_t=A, q_t=Q, stop="bootstrap"),
        values(Q, A, scale=2.0, mask=A == 1),
        jax.jit(values)(Q, A, np.ones(3, np.float32)),
        jax.vmap(values)(Q[None], A[None])[0],
    ):
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(out, expected)
    slope = jax.grad(lambda q: jnp.sum(values(q, A, 0.5)))(Q)
    np.testing.assert_array_equal(slope, [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"a_t": A[:2]}, r"^a_t: expected the shape \[3\]; .* q_t float32\[3,2\], a_t"),
        ({"q_t": Q[0]}, r"^q_t: expected the shape \[2,A\]; expected q_t\[T,A\] a_t"),
        ({"lambda_t": np.ones(2)}, r"^lambda_t: expected the shape \[3\]"),
        ({"scale": np.ones(3)}, r"^scale: expected the shape \[\]"),
        ({"a_t": A * 1.0}, "^a_t: expected ints"),
        ({"mask": A}, "^mask: expected bools"),
        ({"q_t": Q.astype(int)}, r"^q_t: expected floats \(see `astype`\)"),
    ],
)
def test_refusals_name_the_argument(change, message):
    x = {"q_t": Q, "a_t": A} | change
    with pytest.raises(AssertionError, match=message):
        values(**x)
    with pytest.raises(AssertionError, match=message):
        jax.eval_shape(values, **x)


def test_other_refusals():
    with pytest.raises(TypeError, match="q_t: expected an array, got None"):
        values(None, A)
    with pytest.raises(TypeError, match="a_t"):
        values(Q)
    for stop in ("target", None, ["none"]):
        with pytest.raises(ValueError, match="expected one of .*'bootstrap', 'none'"):
            values(Q, A, stop=stop)


def test_bad_declarations_are_refused_at_once():
    for word in ("q_t", "q_t[T]:float32", "q_t(T)", "q_t[T],"):
        with pytest.raises(ValueError, match="declares no argument"):
            checked(word)
    with pytest.raises(ValueError, match=r"values has no parameter for \['x\[T\]'\]"):
        checked("q_t[T] x[T]")(values)


@pytest.mark.parametrize(
    "spec, shapes, right",
    [
        ("x[...,A] i[...]", ((4, 5, 2), (4, 5)), True),
        ("x[...,A] i[...]", ((2,), ()), True),
        ("x[...,A] i[...]", ((4, 2), ()), False),
        ("x[...,A] i[...]", ((), ()), False),
        ("i[...] x[...,A]", ((4,), (4, 2)), True),
        ("i[...] x[...,A]", ((4,), (5, 2)), False),
        ("x[...,A] y[...,A]", ((3, 2), (3, 1)), False),
        ("x[K] c[K-1]", ((3,), (2,)), True),
        ("x[K] c[K-1]", ((3,), (3,)), False),
        ("c[K-1] x[K]", ((2,), (3,)), True),
        ("x[*] y[T]", ((4, 5), (3,)), True),
        ("x[...] y[...]", ((4, 5), (4, 5)), True),
        ("x[...] y[...]", ((4, 5), (5,)), False),
    ],
)
def test_shapes(spec, shapes, right):
    arrays = dict(zip(spec.split(), map(np.ones, shapes), strict=True))
    if right:
        promoted(arrays)
    else:
        with pytest.raises(AssertionError, match="expected the shape"):
            promoted(arrays)


def test_floats_are_promoted_to_the_widest():
    x, i, y, z = promoted(
        {
            "x[T]": jnp.ones(2, jnp.bfloat16),
            "i[T]:int": np.arange(2),
            "y[T]": np.ones(2, np.float32),
            "z[]:scalar": 1.0,
        }
    )
    assert (x.dtype, y.dtype) == (jnp.float32, jnp.float32)
    assert np.issubdtype(i.dtype, np.integer)
    assert isinstance(z, float)  # promotes nothing
    (z,) = promoted({"z[]:scalar": 1})
    assert z.dtype == jnp.float32


def test_the_docstring_says_what_is_declared():
    expected = """Values of actions.

Args:
  q_t: `[T, A]` action values.
  a_t: `[T]` int the action taken.
  lambda_t: `[T]` or `[]` in [0, 1].
  scale: `[]` a number.
  mask: `[T]` bool which count.
  stop: nothing.

Returns:
  `[T]` values.

Raises:
  ValueError: unknown `stop`; never.
  AssertionError: shape or dtype, at trace time.

Example:
  None."""
    assert inspect.getdoc(values) == expected


def test_long_meanings_are_wrapped_between_words():
    def f(x):
        """Does nothing."""

    for length in range(60, 90):
        doc = checked("x[T,A]", {"x": f"{'a' * length} {'b' * length}"})(f).__doc__
        lines = (doc or "").splitlines()
        assert max(map(len, lines)) <= max(84, length + 4)
        assert sum("`[T, A]`" in line for line in lines) == 1


def test_no_docstring():
    assert checked("x[T]")(lambda x: x).__doc__ is None
