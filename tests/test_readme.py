"""The README's Python runs as it stands, and prints what it says."""

import csv
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rljax import autodiff

README = Path(__file__).parents[1] / "README.md"
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def section(title):
    """A section's text."""
    return README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def snippets(title):
    """Run a section's Python blocks, one after the other; the names after each."""
    names = {}
    for code in re.findall(r"```python\n(.*?)```", section(title), re.DOTALL):
        exec(compile(code, str(README), "exec"), names)
        yield code, names


def run_section(title):
    """Run a section's only Python block; its names."""
    ((_, names),) = snippets(title)
    return names


def check_prints(code, printed):
    """What is printed are the numbers behind `print` or on a line of their own."""
    claims = " ".join(re.findall(r"(?:\)  |^)# (-?\d[^:\n]*)", code, re.MULTILINE))
    claimed, actual = (re.findall(NUMBER, text) for text in (claims, printed))
    assert claimed and len(actual) == len(claimed), (claims, printed)
    for claim, number in zip(claimed, actual, strict=True):
        last_digit = 10.0 ** -len(claim.partition(".")[2])
        assert abs(float(number) - float(claim)) <= 0.51 * last_digit, (claim, number)


def test_use_the_losses(x64):
    names = run_section("Use the losses in your own project")
    score, eta = names["score"], names["eta"]
    args = jnp.ones(3), names["trajectory"], names["held_out"]
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
    return (f(0.9 + h) - f(0.9 - h)) / (2 * h)


def check_derivatives(names):
    assert abs(names["first_return"](0.9) - (1 + 0.9 + 0.81 + 0.729)) < 1e-6


def check_meta_gradient(names):
    error = names["error"]
    # One update to v = 0.3 + 0.1 (1 + 2 gamma - 0.3), then half the square of 5 - v.
    exact = -(5 - 0.55) * 0.1 * 2
    assert abs(jax.grad(error)(0.9, "bootstrap") - exact) < 1e-6
    assert abs(slope(lambda gamma: error(gamma, "target")) - exact) < 1e-3


def check_target(names):
    error = names["error"]
    exact = slope(lambda gamma: error(gamma, names["stopped"]))
    assert abs(jax.grad(error)(0.9, names["separate"]) - exact) < 1e-3


def check_sample(names):
    exact = jax.grad(lambda logits: names["q"] @ jax.nn.softmax(logits))
    for gradient in names["gradients"]:
        np.testing.assert_allclose(gradient, exact(names["logits"]), rtol=1e-6)


def check_norms(names):
    per_transition = jax.vmap(jax.grad(names["loss"]), (None, 0))
    grads = jax.tree.leaves(per_transition(names["params"], names["batch"]))
    squares = sum(jnp.sum(g**2, range(1, g.ndim)) for g in grads)
    np.testing.assert_allclose(names["norms"], jnp.sqrt(squares), rtol=1e-5)


def test_gradients_as_instruments(capsys):
    checks = (
        *(check_derivatives, check_meta_gradient, check_target, check_sample),
        check_norms,
    )
    ran = snippets("Gradients as instruments")
    for check, (code, names) in zip(checks, ran, strict=True):
        check_prints(code, capsys.readouterr().out)
        check(names)


def test_the_table_of_autodiff():
    table = section("Gradients as instruments").rpartition("|---|---|")[2]
    named = re.findall(r"`(\w+)`", table)
    assert len(named) > 20 and set(named) <= set(autodiff.__all__)


def test_learn_to_adapt():
    names = run_section("Learn to adapt")
    before, after = (names["metrics"][x] for x in ("return", "adapted_return"))
    assert after[-20:].mean() > before[-20:].mean() + 0.2
    moved = jax.tree.map(jnp.subtract, names["adapted"], names["state"].params)
    assert all(jnp.any(x != 0) for x in jax.tree.leaves(moved))


def test_the_api(capsys):
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
