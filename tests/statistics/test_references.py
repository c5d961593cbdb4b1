"""References: the package's table, normalised scores, damaged files."""

import csv
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs
from rljax.statistics import Reference, normalise, read_references
from rljax.statistics.references import OWN


@pytest.fixture(scope="module")
def rows():
    with OWN.open() as file:
        return list(csv.DictReader(file))


def test_every_reference_is_of_an_environment_and_has_its_sources(rows):
    assert {row["task"] for row in rows} <= set(envs.names())
    assert len(rows) == len(read_references())
    for row in rows:
        assert float(row["random"]) < float(row["best"])
        assert row["source_of_random"].startswith(("measured", "exact"))
        assert len(row["source_of_best"]) > 10


def random_returns(name, actions, steps, episodes=2000):
    """Returns of uniform actions."""
    env = envs.make(name)

    def play(key):
        reset_key, key = jax.random.split(key)
        state, _ = env.reset(reset_key, episodes)

        def step(carry, key):
            state, running = carry
            act_key, env_key = jax.random.split(key)
            noise = jax.tree.map(lambda x: x[0], env.draw(env_key, 1, episodes))
            action = jax.random.randint(act_key, (episodes,), 0, actions)
            state, now = env.step(noise, state, action)
            going_on = running & ~(now.terminated | now.truncated)
            return (state, going_on), now.reward * running

        start = state, jnp.ones(episodes, bool)
        (_, running), rewards = jax.lax.scan(step, start, jax.random.split(key, steps))
        return running, rewards.sum(axis=0)

    running, returns = jax.jit(play)(jax.random.key(5))
    assert not running.any()
    return np.asarray(returns)


@pytest.mark.parametrize(
    "name, actions, steps",
    [("CartPole-v1", 2, 200), ("Catch-bsuite", 3, 10), ("DeepSea-bsuite", 2, 9)],
)
def test_random_scores_are_those_of_random_actions(name, actions, steps):
    """Within 4 standard errors of 2000 episodes."""
    returns = random_returns(name, actions, steps)
    error = returns.std() / len(returns) ** 0.5
    assert abs(returns.mean() - read_references()[name].random) < 4 * error


# The map of FrozenLake-v1: Gymnasium's documentation. An action goes its way, or to
# either side of it, with a third each.
LAKE = "SFFFFHFHFFFHHFFG"
WAYS = [(0, -1), (1, 0), (0, 1), (-1, 0)]


def lake_value(choose):
    """The value of the start over 100 steps, by backward induction."""
    value = np.zeros(16)
    for _ in range(100):
        after = np.zeros((16, 4))
        for place, action, turn in np.ndindex(16, 4, 3):
            way = WAYS[(action + turn - 1) % 4]
            row, column = np.clip(np.add(divmod(place, 4), way), 0, 3)
            tile = LAKE[4 * row + column]
            there = {"G": 1.0, "H": 0.0}.get(tile, value[4 * row + column])
            after[place, action] += there / 3
        value = choose(after)
    return value[0]


def test_scores_of_the_frozen_lake_are_exact():
    random, best = read_references()["FrozenLake-misc"]
    assert abs(random - lake_value(lambda x: x.mean(axis=1))) < 5e-5
    assert abs(best - lake_value(lambda x: x.max(axis=1))) < 5e-4


def test_random_and_best_become_0_and_1():
    scores = np.array([[[-200.0, 1.0], [-100.0, 0.0], [-150.0, 2.0]]])
    found = normalise(scores, [Reference(-200, -100), Reference(1.0, 3.0)])
    np.testing.assert_allclose(found, [[[0.0, 0.0], [1.0, -0.5], [0.5, 0.5]]])
    with pytest.raises(ValueError, match="1 references for 2 tasks: must be as many"):
        normalise(scores, [Reference(0, 1)])


GOOD = "task,random,best,note\na,1,2,x\n"
BAD = [
    ("task,random\na,1\n", "no column 'best'"),
    ("", "no column 'task'"),
    (GOOD + "b,1,high,\n", "line 3: best='high': must be a finite number"),
    (GOOD + "b,nan,1,\n", "line 3: random='nan': must be a finite number"),
    (GOOD + "b,1\n", "line 3: best=None: must be a finite number"),
    (GOOD + "a,1,3,\n", "line 3: 'a' is there twice"),
    (GOOD + "b,3,3.0,\n", "line 3: random and best are equal, must differ"),
]


@pytest.mark.parametrize("text, told", BAD)
def test_damaged_tables_are_refused(tmp_path, text, told):
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=told) as error:
        read_references(path)
    assert str(path) in str(error.value)


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(GOOD)
    assert read_references(path) == {"a": Reference(random=1.0, best=2.0)}


def test_statistics_need_neither_jax_nor_matplotlib():
    code = "import sys, rljax.statistics as s; s.iqm([[1.0]]); s.read_references(); "
    code += "print([x for x in ('jax', 'matplotlib', 'scipy') if x in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_table_lies_beside_the_code():
    assert OWN.parent == pathlib.Path(sys.modules["rljax.statistics"].__file__).parent
