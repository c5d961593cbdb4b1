"""The README's Python runs as it stands, and prints what it says."""

import csv
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import autodiff

README = Path(__file__).parents[1] / "README.md"
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def section(title):
    """A section's text."""
    return README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def snippets(title):
    """A section's Python blocks."""
    return re.findall(r"```python\n(.*?)```", section(title), re.DOTALL)


def execute(code, names):
    """Run code as it stands; `names` has what it uses and gets what it defines."""
    exec(compile(code, str(README), "exec"), names)


def traced(code, names):
    """Run code in a trace; returns its arrays by name, and what it prints."""
    printed = []
    names["print"] = lambda *values: printed.append(values)
    before = dict(names)
    execute(code, names)
    del names["print"]
    arrays = {
        name: value
        for name, value in names.items()
        if value is not before.get(name)
        and any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(value))
    }
    for name in arrays:  # a tracer means nothing outside
        del names[name]
    return arrays, printed


def execute_at_once(code, names):
    """Run code as one program: its operations, one by one, take longer to compile."""
    arrays, printed = jax.jit(lambda: traced(code, names))()
    names.update(arrays)
    for values in printed:
        print(*values)


either_way = pytest.mark.parametrize(
    "run", [execute_at_once, pytest.param(execute, marks=pytest.mark.slow)]
)


def run_section(title, run=execute):
    """Run a section's only Python block; its names."""
    (code,), names = snippets(title), {}
    run(code, names)
    return names


def check_prints(code, printed):
    """What is printed are the numbers behind `print` or on a line of their own."""
    claims = " ".join(re.findall(r"(?:\)  |^)# (-?\d[^:\n]*)", code, re.MULTILINE))
    claimed, actual = (re.findall(NUMBER, text) for text in (claims, printed))
    assert claimed and len(actual) == len(claimed), (claims, printed)
    for claim, number in zip(claimed, actual, strict=True):
        last_digit = 10.0 ** -len(claim.partition(".")[2])
        assert abs(float(number) - float(claim)) <= 0.51 * last_digit, (claim, number)


@either_way
def test_use_the_losses(run, x64):
    """In the slow run as it stands, one operation after the other."""
    names = run_section("Use the losses in your own project", run)
    score, eta = jax.jit(names["score"]), names["eta"]
    args = np.ones(3), names["trajectory"], names["held_out"]
    for name, h in (("gamma", 1e-6), ("lambda", 1e-6)):
        up, down = (score(eta | {name: eta[name] + s}, *args) for s in (h, -h))
        slope = (up - down) / (2 * h)
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(names["meta_gradient"][name], slope, 1e-6)


def test_the_discount_that_an_agent_chooses():
    names = run_section("Let the agent choose its discount")
    agent, config = names["agent"], names["config"]
    state = jax.eval_shape(agent.init, config, jax.random.key(0))
    assert set(state.raw) == {"gamma", "entropy_cost"}
    assert state.window.keys.shape == (2, 2)


def slope(f, h=1e-2):
    """The derivative at a discount of 0.9."""
    f = jax.jit(f)
    return (f(0.9 + h) - f(0.9 - h)) / (2 * h)


def check_derivatives(names):
    first_return = jax.jit(names["first_return"])
    assert abs(first_return(0.9) - (1 + 0.9 + 0.81 + 0.729)) < 1e-6


def check_meta_gradient(names):
    error = names["error"]
    # One update to v = 0.3 + 0.1 (1 + 2 gamma - 0.3), then half the square of 5 - v.
    exact = -(5 - 0.55) * 0.1 * 2
    meta_gradient = jax.jit(jax.grad(error), static_argnums=1)
    assert abs(meta_gradient(0.9, "bootstrap") - exact) < 1e-6
    assert abs(slope(lambda gamma: error(gamma, "target")) - exact) < 1e-3


def check_target(names):
    error = names["error"]
    exact = slope(lambda gamma: error(gamma, names["stopped"]))
    meta_gradient = jax.jit(jax.grad(error), static_argnums=1)
    assert abs(meta_gradient(0.9, names["separate"]) - exact) < 1e-3


def check_sample(names):
    q, shares = np.asarray(names["q"]), np.full(3, 1 / 3)  # of equal logits
    exact = shares * (q - q @ shares)
    for gradient in np.asarray(names["gradients"]):
        np.testing.assert_allclose(gradient, exact, rtol=1e-6)


def check_norms(names):
    per_transition = jax.jit(jax.vmap(jax.grad(names["loss"]), (None, 0)))
    grads = jax.tree.leaves(per_transition(names["params"], names["batch"]))
    squares = sum(np.sum(np.square(g), tuple(range(1, g.ndim))) for g in grads)
    np.testing.assert_allclose(names["norms"], np.sqrt(squares), rtol=1e-5)


@either_way
def test_gradients_as_instruments(run, capsys):
    """In the slow run as it stands, one operation after the other."""
    checks = (
        *(check_derivatives, check_meta_gradient, check_target, check_sample),
        check_norms,
    )
    names = {}
    for check, code in zip(checks, snippets("Gradients as instruments"), strict=True):
        run(code, names)
        check_prints(code, capsys.readouterr().out)
        check(names)


def test_the_table_of_autodiff():
    table = section("Gradients as instruments").rpartition("|---|---|")[2]
    named = re.findall(r"`(\w+)`", table)
    assert len(named) > 20 and set(named) <= set(autodiff.__all__)


def in_shapes(title):
    """The shapes of a section's arrays, by name, and of what it prints."""
    (code,) = snippets(title)
    return jax.eval_shape(lambda: traced(code, {}))


def test_learn_to_adapt_in_shapes():
    arrays, _ = in_shapes("Learn to adapt")
    params = arrays["state"].params
    assert arrays["metrics"]["adapted_return"].shape == (50,)
    chex.assert_trees_all_equal_shapes_and_dtypes(arrays["adapted"], params)


@pytest.mark.slow
def test_learn_to_adapt():
    """Runs 50 updates, after which an adaptation helps and moves every parameter."""
    names = run_section("Learn to adapt")
    metrics = jax.tree.map(np.asarray, names["metrics"])
    before, after = (metrics[x][-20:].mean() for x in ("return", "adapted_return"))
    assert after > before + 0.2
    moved = jax.tree.map(np.subtract, names["adapted"], names["state"].params)
    assert all(np.any(x != 0) for x in jax.tree.leaves(moved))


def test_the_api_in_shapes():
    arrays, ((mean_return,),) = in_shapes("The API in 30 lines")
    assert mean_return.shape == ()
    assert arrays["seeds"].step.shape == (4,)
    assert len(arrays["curves"]) == 3


@pytest.mark.slow
def test_the_api(capsys):
    """Trains and plays, so that the returns are those of a policy that has learned."""
    names = run_section("The API in 30 lines")
    assert float(capsys.readouterr().out) > 100
    assert names["seeds"].step.shape == (4,)
    assert jnp.isfinite(names["curves"]).any(axis=1).all()


def test_results_are_those_of_the_csv():
    table = re.findall(r"^\| .*`.*` .*?\| (\S+) \| (.*) \|$", section("Results"), re.M)
    with (README.parent / "docs" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [mean for mean, _ in table] == [row["mean_return"] for row in rows]
    for (_, spread), row in zip(table, rows, strict=True):
        ends = f"{row['worst_seed']} to {row['best_seed']}"
        assert spread == ("one seed" if row["seeds"] == "1" else ends)
