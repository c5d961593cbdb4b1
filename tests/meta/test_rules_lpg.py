"""LPG: its numbers by loops, what it may not see, and exact meta-gradients."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rljax import envs
from rljax.envs import grid_worlds, tasks
from rljax.meta import finite_differences
from rljax.meta.rules import Trajectory, lpg, meta_training, td
from rljax.running import parallel

SETTINGS = lpg.Settings(y_size=3, memory_size=4, hidden_size=3, y_cost=0.7, bound=1.5)
RULE = lpg.make(SETTINGS)
T, B, A, Y = 6, 2, 4, 3


# The rule.


def numbers(seed=0):
    """Random float64 in place of a rule's numbers, biases too."""
    shapes = jax.eval_shape(RULE.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.7 * rng.normal(size=x.shape), shapes)


def trajectory_of(terminated=(), truncated=(), shown=True, actions=A):
    """Random numbers, ends at `(t, b)`; successors have rows of their own if shown."""
    rng = np.random.default_rng(1)
    rows = 2 * T + 1 if shown else T + 1
    ends = np.zeros((2, T, B), bool)
    for kind, places in zip(ends, (terminated, truncated), strict=True):
        for place in places:
            kind[place] = True
    following = np.broadcast_to(np.arange(T + 1, 2 * T + 1)[:, None], (T, B))
    return Trajectory(
        outputs={
            "logits": rng.normal(size=(rows, B, actions)),
            "y": rng.normal(size=(rows, B, Y)),
        },
        target_outputs=(),
        behaviour_logits=rng.normal(size=(T, B, actions)),
        action=rng.integers(actions, size=(T, B)),
        reward=rng.normal(size=(T, B)),
        discount=0.9 * ~ends[0],
        ended=ends[0] | ends[1],
        weight=np.ones((T, B)),
        following=following if shown else None,
    )


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x):
    p = np.exp(x - x.max())
    return p / p.sum()


def layer(params, x):
    return x @ params["w"] + params["b"]


def targets_by_loops(params, trajectory):
    """Of the formulas, a step at a time."""

    def read(row, b):
        y = trajectory.outputs["y"][row, b]
        hidden = np.maximum(layer(params["read_0"], softmax(y)), 0.0)
        return layer(params["read_1"], hidden)[0]

    pi_hat, y_hat = np.zeros((T, B)), np.zeros((T, B, Y))
    for b in range(B):
        memory = np.zeros(SETTINGS.memory_size)
        for t in reversed(range(T)):
            after = 0.0
            if trajectory.discount[t, b] > 0:
                if trajectory.following is not None:
                    after = read(trajectory.following[t, b], b)
                elif not trajectory.ended[t, b]:
                    after = read(t + 1, b)
            pi = softmax(trajectory.outputs["logits"][t, b])
            x = np.array(
                [
                    trajectory.reward[t, b],
                    trajectory.discount[t, b],
                    pi[trajectory.action[t, b]],
                    read(t, b),
                    after,
                ]
            )
            if trajectory.ended[t, b]:
                memory = np.zeros_like(memory)
            of_x = {k: layer(v, x) for k, v in params["input"].items()}
            of_h = {k: layer(v, memory) for k, v in params["memory"].items()}
            keep = sigmoid(of_x["keep"] + of_h["keep"])
            reset = sigmoid(of_x["reset"] + of_h["reset"])
            new = np.tanh(of_x["new"] + reset * of_h["new"])
            memory = keep * memory + (1.0 - keep) * new
            raw = layer(params["pi_hat"], memory)[0]
            pi_hat[t, b] = SETTINGS.bound * np.tanh(raw / SETTINGS.bound)
            y_hat[t, b] = layer(params["y_hat"], memory)
    return {"pi_hat": pi_hat, "y_hat": y_hat}


def targets_of(trajectory, params=None):
    return RULE.targets(params or numbers(), RULE.start(), trajectory)[0]


ENDS = dict(terminated=[(2, 0), (5, 1)], truncated=[(1, 1), (4, 0)])


@pytest.mark.parametrize("shown", [True, False])
def test_targets_equal_loops(shown, x64):
    trajectory = trajectory_of(**ENDS, shown=shown)
    found = jax.jit(targets_of)(trajectory)
    expected = targets_by_loops(numbers(), trajectory)
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)
    assert np.abs(found["pi_hat"]).max() > 0.3  # not everything is near 0


def test_losses_equal_loops(x64):
    """KL with the prediction first."""
    trajectory = trajectory_of(**ENDS)
    targets = targets_by_loops(numbers(), trajectory)
    found = RULE.loss(trajectory.outputs, targets, trajectory)
    for t, b in np.ndindex(T, B):
        pi, y = (softmax(trajectory.outputs[k][t, b]) for k in ("logits", "y"))
        y_hat = softmax(targets["y_hat"][t, b])
        policy = -targets["pi_hat"][t, b] * np.log(pi[trajectory.action[t, b]])
        kl = np.sum(y * np.log(y / y_hat))
        assert found[t, b] == pytest.approx(policy + 0.7 * kl, rel=1e-9)


def changed(trajectory, row):
    """Another reward, discount and outputs at a row and all that come after."""
    later = np.arange(T)[:, None] >= row
    outputs = {
        k: np.where((np.arange(len(x)) >= row)[:, None, None], x + 1.0, x)
        for k, x in trajectory.outputs.items()
    }
    return trajectory._replace(
        outputs=outputs,
        reward=np.where(later, trajectory.reward - 2.0, trajectory.reward),
        discount=np.where(later, 0.5 * trajectory.discount, trajectory.discount),
    )


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_nothing_of_later_episodes_gets_through(kind, x64):
    """After step 2 begins an episode, of which the first and all later rows change."""
    ends = {kind: [(2, b) for b in range(B)]}
    trajectory = trajectory_of(**ends, shown=False)
    before, after = (targets_of(x) for x in (trajectory, changed(trajectory, 3)))
    for name, x in before.items():
        np.testing.assert_array_equal(x[:3], after[name][:3])
        assert np.all(x[3:] != after[name][3:])
    joined = trajectory_of(shown=False)  # without the end something does
    before, after = (targets_of(x) for x in (joined, changed(joined, 3)))
    assert np.all(before["pi_hat"][:3] != after["pi_hat"][:3])


def test_the_successor_is_seen_beyond_a_time_limit_and_not_beyond_an_end(x64):
    trajectory = trajectory_of(terminated=[(2, 0)], truncated=[(2, 1)])
    outputs = dict(trajectory.outputs)
    outputs["y"] = outputs["y"].copy()
    outputs["y"][T + 1 + 2] += np.arange(Y)  # what step 2 led to
    other = targets_of(trajectory._replace(outputs=outputs))["pi_hat"]
    moved = targets_of(trajectory)["pi_hat"] != other
    assert not moved[:, 0].any()
    assert moved[:3, 1].all() and not moved[3:, 1].any()


def test_actions_do_not_enter_by_their_number(x64):
    """Of two policies that give the action taken the same probability."""
    few, many = trajectory_of(actions=2), trajectory_of(actions=5)
    p = np.full((2 * T + 1, B), 0.3)
    of_few = np.log(np.stack([p, 1 - p], -1))
    of_many = np.log(np.stack([p, *4 * [(1 - p) / 4]], -1))
    action = np.zeros((T, B), int)
    few = few._replace(outputs={**many.outputs, "logits": of_few}, action=action)
    many = many._replace(outputs={**many.outputs, "logits": of_many}, action=action)
    many = many._replace(reward=few.reward)
    chex.assert_trees_all_close(targets_of(few), targets_of(many), rtol=1e-9)


def test_the_policys_target_is_bounded(x64):
    large = jax.tree.map(lambda x: 50.0 * x, numbers())
    pi_hat = targets_of(trajectory_of(), large)["pi_hat"]
    assert np.abs(pi_hat).max() <= SETTINGS.bound
    assert np.abs(pi_hat).max() > 0.99 * SETTINGS.bound


def test_one_step_actor_critic_in_the_rules_place(x64):
    trajectory = trajectory_of(**ENDS)
    rule = td.make(lpg.Settings(y_cost=0.7, bound=1.0))
    targets, _ = rule.targets(rule.init(None), rule.start(), trajectory)
    value = trajectory.outputs["y"][..., 0]
    following = value[trajectory.following, np.arange(B)]
    target = trajectory.reward + trajectory.discount * following
    advantage = np.clip(target - value[:T], -1.0, 1.0)
    np.testing.assert_allclose(targets["pi_hat"], advantage)
    found = rule.loss(trajectory.outputs, targets, trajectory)
    for t, b in np.ndindex(T, B):
        pi = softmax(trajectory.outputs["logits"][t, b])
        expected = 0.35 * (value[t, b] - target[t, b]) ** 2
        expected -= advantage[t, b] * np.log(pi[trajectory.action[t, b]])
        assert found[t, b] == pytest.approx(expected, rel=1e-9)


# Its file.


def test_a_rule_comes_back_from_its_file(tmp_path):
    params = RULE.init(jax.random.key(0))
    lpg.save(tmp_path / lpg.FILE, SETTINGS, params)
    for path in (tmp_path, tmp_path / lpg.FILE):
        settings, found = lpg.load(path)
        assert settings == SETTINGS
        chex.assert_trees_all_equal(found, params)
    assert lpg.load(tmp_path)[1] is lpg.load(str(tmp_path))[1]


def rewritten(path, **changes):
    with np.load(path) as found:
        arrays = dict(found)
    for name, array in changes.items():
        arrays[name.replace("__", "/")] = array
    np.savez(path, **{k: x for k, x in arrays.items() if x is not None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(settings=None), "no settings of this rule: 'settings'"),
        (dict(settings=np.array("{}x")), "no settings of this rule"),
        (dict(settings=np.array('{"y_size": 0}')), "y_size=0: must be an integer"),
        (dict(settings=np.array('{"z": 1}')), "unexpected keyword"),
        (dict(pi_hat__b=None), "missing or more: pi_hat/b"),
        (dict(more=np.ones(1)), "missing or more: more"),
        (
            dict(pi_hat__b=np.ones(1)),
            r"pi_hat/b is float64\[1\], expected float32\[1\]",
        ),
        (
            dict(read_1__w=np.ones((4, 1), np.float32)),
            r"read_1/w is float32\[4, 1\], expected float32\[3, 1\]",
        ),
        (dict(y_hat__b=np.full(3, np.nan, np.float32)), "not finite"),
        (dict(y_hat__b=np.array([{}])), "damaged"),  # would be unpickled
    ],
)
def test_a_file_that_is_another_is_told(tmp_path, changes, words):
    path = tmp_path / lpg.FILE
    lpg.save(path, SETTINGS, RULE.init(jax.random.key(0)))
    rewritten(path, **changes)
    with pytest.raises(ValueError, match=words) as error:
        lpg.load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_damaged_file_is_told(tmp_path):
    path = tmp_path / lpg.FILE
    lpg.save(path, SETTINGS, RULE.init(jax.random.key(0)))
    whole = path.read_bytes()
    for damaged in (b"", b"rule", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no file of arrays, or damaged"):
            lpg.load(path)
    with pytest.raises(ValueError, match="No such file"):
        lpg.load(tmp_path / "other")


# Meta-training.

GYM = grid_worlds.GridWorld(size=3, num_objects=2)
ENV = envs.wrap(GYM)
DRAWN = ("next_cell", "start", "place", "reward", "p_end", "p_respawn")


def draw_task(key):
    """A grid world whose episodes are cut after 5 steps."""
    params = grid_worlds.draw_params(key, GYM)
    drawn = {name: getattr(params, name) for name in DRAWN}
    return tasks.with_params(ENV, max_steps_in_episode=5, **drawn)


PARTS = meta_training.Parts(
    rule=RULE, network=meta_training.table(ENV.spec, Y), draw_task=draw_task
)
CONFIG = meta_training.Config(
    inner_rate=3.0,
    gamma=0.9,
    lambda_=0.8,
    policy_entropy=0.03,
    y_entropy=0.02,
    pi_hat_cost=0.04,
    y_hat_cost=0.05,
    num_lifetimes=4,
    lifetime=6,
    inner_updates=2,
    num_envs=3,
    rollout_length=8,
)


def with_updates(number, **changes):
    return dataclasses.replace(CONFIG, inner_updates=number, **changes)


def life_of(seed=0):
    """An agent that has learned something already: random numbers."""
    task, env_key, key = jax.random.split(jax.random.key(seed), 3)
    life = meta_training.born(PARTS, CONFIG, task=task, env_key=env_key, key=key)
    rng = np.random.default_rng(seed)
    table = jnp.asarray(rng.normal(size=life.params["table"].shape))
    critic = jnp.asarray(0.5 * rng.normal(size=life.critic.shape))
    return life._replace(params={"table": table}, critic=critic)


def objective(config, rule_params, life):
    return meta_training.lifetime_loss(PARTS, config, rule_params, life)[0]


@pytest.mark.parametrize(
    "updates", [1, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 5))]
)
def test_the_meta_gradient_equals_finite_differences(updates, x64):
    loss = functools.partial(objective, with_updates(updates))

    @jax.jit
    def both(params, life):
        of_life = functools.partial(loss, life=life)
        gradient = jax.grad(of_life)(params)
        return gradient, finite_differences(of_life, params, 1e-6)

    found, expected = (ravel_pytree(x)[0] for x in both(numbers(), life_of()))
    size = np.abs(expected).max()
    assert size > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7 * size + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 5])
def test_forward_mode_and_remat_give_the_same_meta_gradient(updates, x64):
    @jax.jit
    def all_three(params, life):
        plain, again = (
            functools.partial(objective, with_updates(updates, remat=remat), life=life)
            for remat in (False, True)
        )
        return (
            jax.grad(plain)(params),
            jax.jacfwd(plain)(params),
            jax.grad(again)(params),
        )

    found = [ravel_pytree(x)[0] for x in all_three(numbers(), life_of())]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-6, atol=1e-12)


def played_by(life, key=3):
    env = draw_task(life.task)
    return meta_training.play(PARTS, CONFIG, env, life, jax.random.key(key))[1]


def test_an_update_is_the_semi_gradient(x64):
    """By hand: of policy and prediction, at fixed targets, mean over the steps."""

    @jax.jit
    def update(life):
        played = played_by(life)
        new, _ = meta_training.learn(PARTS, CONFIG, numbers(), life, played)
        trajectory = meta_training.trajectory_of(
            PARTS.network, CONFIG, life.params, played
        )
        return played, trajectory, new.params["table"]

    life = life_of()
    played, trajectory, found = update(life)
    targets = RULE.targets(numbers(), (), trajectory)[0]
    table = np.array(life.params["table"])
    expected = table.copy()
    size = played.reward.size
    for t, b in np.ndindex(played.reward.shape):
        state = played.obs[t, b, 0]
        pi, y = softmax(table[state, :A]), softmax(table[state, A:])
        log_ratio = np.log(y / softmax(np.array(targets["y_hat"][t, b])))
        of_y = 0.7 * y * (log_ratio - np.sum(y * log_ratio))
        of_pi = -targets["pi_hat"][t, b] * (np.eye(A)[played.action[t, b]] - pi)
        expected[state] -= 3.0 * np.concatenate([of_pi, of_y]) / size
    assert np.abs(expected - table).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_a_trajectory_shows_true_successors(x64):
    life = life_of()

    @jax.jit
    def both(life):
        played = played_by(life)
        network = PARTS.network
        return played, meta_training.trajectory_of(network, CONFIG, life.params, played)

    played, trajectory = both(life)
    assert played.truncated.any() and played.terminated.any()
    table = np.array(life.params["table"])
    y = np.array(trajectory.outputs["y"])
    row = y[trajectory.following, np.arange(played.reward.shape[1])]
    np.testing.assert_array_equal(row, table[played.next_obs[..., 0], A:])
    np.testing.assert_array_equal(y[:8], table[played.obs[..., 0], A:])
    np.testing.assert_allclose(trajectory.discount, 0.9 * ~np.array(played.terminated))
    ended = np.array(played.terminated | played.truncated)
    np.testing.assert_array_equal(trajectory.ended, ended)


def test_the_critic_moves_to_the_mean_of_its_targets(x64):
    life = life_of()

    @jax.jit
    def step(life):
        played = played_by(life)
        return played, *meta_training.value_step(CONFIG, life.critic, played)

    played, critic, adv = jax.device_get(step(life))
    value, length = np.array(life.critic), len(played.reward)
    expected = np.zeros_like(adv)
    for b in range(adv.shape[1]):
        trace = 0.0
        for t in reversed(range(length)):
            after = 0.9 * value[played.next_obs[t, b, 0]] * ~played.terminated[t, b]
            error = played.reward[t, b] + after - value[played.obs[t, b, 0]]
            going_on = ~(played.terminated[t, b] | played.truncated[t, b])
            trace = error + 0.9 * 0.8 * going_on * trace
            expected[t, b] = trace
    np.testing.assert_allclose(adv, expected, rtol=1e-6, atol=1e-7)
    moved = value.copy()
    for state in np.unique(played.obs):
        here = played.obs[..., 0] == state
        moved[state] += CONFIG.critic_rate * expected[here].mean()
    np.testing.assert_allclose(critic, moved, rtol=1e-6, atol=1e-7)


def test_the_outer_loss_is_of_fresh_data_by_the_policy_after_the_updates(x64):
    """All terms, from an update and a rollout made apart."""
    config = with_updates(1)

    @jax.jit
    def apart(life):
        env = draw_task(life.task)
        _, outer_key, key = jax.random.split(life.key, 3)
        life, first = meta_training.play(PARTS, config, env, life, key)
        trajectory = meta_training.trajectory_of(
            PARTS.network, config, life.params, first
        )
        targets = RULE.targets(numbers(), (), trajectory)[0]
        life, _ = meta_training.learn(PARTS, config, numbers(), life, first)
        life, played = meta_training.play(PARTS, config, env, life, outer_key)
        return (
            targets,
            life,
            played,
            meta_training.value_step(config, life.critic, played),
        )

    targets, life, played, (critic, adv) = apart(life_of())
    found, (after, metrics) = jax.jit(
        functools.partial(meta_training.lifetime_loss, PARTS, config, numbers())
    )(life_of())
    row = np.array(life.params["table"])[played.obs[..., 0]]
    total = 0.0
    for t, b in np.ndindex(adv.shape):
        pi, y = softmax(row[t, b, :A]), softmax(row[t, b, A:])
        total -= np.log(pi[played.action[t, b]]) * adv[t, b]
        total += 0.03 * np.sum(pi * np.log(pi)) + 0.02 * np.sum(y * np.log(y))
    squares = (np.mean(np.square(targets[k])) for k in ("pi_hat", "y_hat"))
    expected = total / adv.size + sum(np.array([0.04, 0.05]) * [*squares])
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(after.critic, critic, rtol=1e-6)
    reward = float(np.mean(played.reward))
    assert float(metrics["reward"]) == pytest.approx(reward, rel=1e-6)


@pytest.mark.slow
def test_lifetimes_together_are_each_alone(x64):
    one = functools.partial(meta_training.lifetime_loss, PARTS, CONFIG, numbers())
    lives = jax.vmap(life_of_key)(jax.random.split(jax.random.key(5), 3))
    together = jax.jit(jax.vmap(one))(lives)
    alone = jax.jit(one)
    for i in range(3):
        take = functools.partial(jax.tree.map, lambda x, i=i: x[i])
        chex.assert_trees_all_close(
            jax.tree.leaves(as_data(take(together))),
            jax.tree.leaves(as_data(alone(take(lives)))),
            rtol=1e-9,
            atol=1e-12,
        )


def life_of_key(key):
    task, env_key, key = jax.random.split(key, 3)
    return meta_training.born(PARTS, CONFIG, task=task, env_key=env_key, key=key)


def as_data(tree):
    def data(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    return jax.device_get(jax.tree.map(data, tree))


@pytest.fixture(scope="module")
def whole():
    """The start, and the state and metrics after 4 meta-steps, in one piece."""
    init = jax.jit(functools.partial(meta_training.init, PARTS, CONFIG))
    run = jax.jit(functools.partial(meta_training.run, PARTS, CONFIG), static_argnums=1)
    start = init(jax.random.key(0))
    return start, run, run(start, 4)


def test_chunks_equal_one_run(whole):
    start, run, (state, metrics) = whole
    middle, first = run(start, 2)
    end, second = run(middle, 2)
    chex.assert_trees_all_equal(as_data(end), as_data(state))
    joined = jax.tree.map(lambda *x: np.concatenate(x), first, second)
    chex.assert_trees_all_equal(joined, jax.device_get(metrics))
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), state.params, start.params)
    assert min(jax.tree.leaves(moved)) > 0


def test_lives_end_at_different_times_and_begin_afresh(whole):
    """Each of 6 updates, of which a meta-step makes 2; the first are shorter."""
    start, run, _ = whole
    state, ages, ends, keys = start, [], [], []
    for _ in range(4):
        state, _ = run(state, 1)
        lives = as_data(state.lifetimes)
        ages.append(lives.age.tolist())
        ends.append(lives.end.tolist())
        keys.append(lives.task.tolist())
    assert start.lifetimes.end.tolist() == [1, 3, 4, 6]
    assert ages == [[2, 2, 2, 2], [2, 4, 4, 4], [4, 2, 2, 6], [6, 4, 4, 2]]
    assert ends[-1] == [6, 6, 6, 6]
    assert keys[0][0] != keys[1][0] and keys[0][3] == keys[2][3] != keys[3][3]
    old = jax.tree.map(lambda x: x[0], state.lifetimes)
    young = jax.jit(functools.partial(meta_training.renewed, PARTS, CONFIG))(old)
    assert np.abs(old.params["table"]).max() > 0 and np.abs(old.critic).max() > 0
    assert not np.any(young.params["table"]) and not np.any(young.critic)
    assert young.age == 0


@pytest.mark.slow
def test_a_split_run_lives_the_same_lives(whole):
    """Two shards hold the same rule, and a half of the lifetimes each."""
    start, _, (state, metrics) = whole
    config = dataclasses.replace(CONFIG, num_lifetimes=2)

    @functools.partial(jax.vmap, axis_name=parallel.AXIS)
    def split(key):
        first = meta_training.init(PARTS, config, key)
        return first, *meta_training.run(PARTS, config, first, 4)

    keys = jnp.stack(2 * [jax.random.key(0)])
    first, end, of_shards = jax.device_get(jax.tree.map(as_array, jax.jit(split)(keys)))
    for tree in (end.params, end.opt_state, of_shards):
        chex.assert_trees_all_equal(
            *(jax.tree.map(lambda x, i=i: x[i], tree) for i in (0, 1))
        )
    joined = jax.tree.map(lambda x: x.reshape(4, *x.shape[2:]), first.lifetimes)
    chex.assert_trees_all_equal(joined, as_data(start.lifetimes))
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[0], end.params), as_data(state.params), atol=2e-5
    )
    np.testing.assert_allclose(of_shards["reward"][0], metrics["reward"], rtol=1e-5)


def as_array(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


def test_tasks_must_name_states_and_actions_be_discrete():
    for name, words in (("CartPole-v1", "name states"), ("Pendulum-v1", "name states")):
        with pytest.raises(ValueError, match=words):
            meta_training.table(envs.make(name).spec, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("inner_rate", -1.0),
        ("gamma", 1.1),
        ("critic_rate", 2.0),
        ("policy_entropy", -0.1),
        ("num_lifetimes", 0),
        ("rollout_length", 0),
    ],
)
def test_bad_values_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        dataclasses.replace(CONFIG, **{field: value}).validate()
