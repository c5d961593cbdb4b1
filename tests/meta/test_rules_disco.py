"""DiscoRL's rule against its formulas in numpy, and against the published agent's."""

import functools
import os
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.meta.rules import Trajectory, disco, successors
from rljax.running import parallel

from ..agent_case import rule_weights
from . import disco_oracle as oracle

T, B, A = 5, 2, 3
FOLDER = os.environ.get("RLJAX_DISCO")  # with disco_103.npz and disco_cases.npz
published = pytest.mark.skipif(
    not FOLDER, reason="RLJAX_DISCO names no folder with disco_103.npz, disco_cases.npz"
)
NAMES = ("logits", "y", "z", "aux_pi", "q")


def random_outputs(rng, rows):
    sizes = dict(logits=(A,), y=(600,), z=(A, 600), aux_pi=(A, A), q=(A, 601))
    return {name: rng.normal(size=(rows, B, *sizes[name])) for name in NAMES}


def random_data(seed):
    """One environment terminates, the other is cut and then goes on to row T + 1."""
    rng = np.random.default_rng(seed)
    ended = np.zeros((T, B), bool)
    ended[1, 0] = ended[2, 1] = True
    terminated = ended & (np.arange(B) == 0)
    following = np.arange(1, T + 1)[:, None] + np.zeros((T, B), int)
    following[2, 1] = T + 1
    return dict(
        outputs=random_outputs(rng, T + 2),
        target_outputs=random_outputs(rng, T + 2),
        behaviour_logits=rng.normal(size=(T, B, A)),
        action=rng.integers(A, size=(T, B)),
        reward=3 * rng.normal(size=(T, B)),
        discount=0.997 * (1.0 - terminated),
        ended=ended,
        weight=np.ones((T, B)),
        following=following,
    )


@pytest.fixture(scope="module")
def params():
    return {k: x.astype(float) for k, x in disco.load(rule_weights()).items()}


def as_double(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, float), tree)


def by_rule(params, state, data):
    trajectory = Trajectory(**data)
    targets, state = disco.targets(params, state, trajectory)
    return targets, disco.loss(trajectory.outputs, targets, trajectory), state


def dense(rows):
    shape = (T, B, *rows[0, 0].shape)
    return np.array([rows[i] for i in np.ndindex(T, B)]).reshape(shape)


def test_updates_in_a_row_equal_the_formulas(x64, params):
    step = jax.jit(by_rule)
    state, zero = as_double(disco.start()), np.zeros(128)
    want_state = ((0.0, 0.0, 1.0), (0.0, 0.0, 1.0), zero, zero)
    for seed in range(2):
        data = random_data(seed)
        targets, loss, state = step(params, state, data)
        want, want_loss, want_state = oracle.update(params, want_state, data)
        for name in ("pi", "y", "z"):
            got = getattr(targets, name)
            np.testing.assert_allclose(got, dense(want[name]), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(targets.q, want["q"], rtol=1e-9)
        np.testing.assert_allclose(loss, want_loss, rtol=1e-9)
        found = (tuple(state.advantage), tuple(state.td_error), *state[2:])
        chex.assert_trees_all_close(found, want_state, rtol=1e-9, atol=1e-12)


def test_a_time_limit_is_a_cut_of_the_trajectory(x64, params):
    """The steps before it are read as if the trajectory had ended there."""
    data = random_data(0)
    before = {k: jax.tree.map(lambda x: x[:3, 1:], v) for k, v in data.items()}
    for name in ("outputs", "target_outputs"):
        before[name] = jax.tree.map(lambda x: x[[0, 1, 2, T + 1], 1:], data[name])
    before |= dict(following=None)

    @jax.jit
    def read(data):
        trajectory, state = Trajectory(**data), as_double(disco.start())
        found, _ = disco.values(state, trajectory)
        # The batch's mean, by which this is normalised, is another one.
        found = found._replace(
            norm_advantage=found.advantage, norm_q_advantage=found.q_advantage
        )
        inputs = disco.inputs(params, "lstm/", trajectory, found)
        memory = disco.memorize(params, inputs, trajectory)
        return found.q_target, disco.heads(params, memory, hidden=state.hidden)

    whole = jax.tree.map(lambda x: x[:3, 1:], read(data))
    # The bias towards an end: the last step of the piece is no end at all.
    before["ended"] = np.zeros_like(before["ended"])
    chex.assert_trees_all_close(read(before), whole, rtol=1e-9)


def sgd_update(params, carry, data, rate, frozen=None):
    """One step of a table of outputs; `frozen` has what derivatives do not pass."""
    outputs, target, state = carry
    known, target_known = frozen or ({}, {})
    data = data | dict(outputs=outputs | known, target_outputs=target | target_known)
    trajectory = Trajectory(**data)
    targets, state = disco.targets(params, state, trajectory)

    def loss(outputs):
        weight = trajectory.weight
        step = disco.loss(outputs, targets, trajectory)
        return jnp.sum(weight * step) / (weight.sum() + 1e-8)

    grads = jax.grad(loss)(outputs)
    new = jax.tree.map(lambda x, g: x - rate * g, outputs, grads)
    target = jax.tree.map(lambda x, y: 0.9 * x + 0.1 * y, target, outputs)
    return new, target, state


def objective(params, data, num_updates, start, rate=2.0, frozen=None):
    """Of the policy after some updates on the same data; and what was read."""
    carry, seen = (data["outputs"], data["target_outputs"], start), []
    for k in range(num_updates):
        seen.append([{n: x[n] for n in ("logits", "q")} for x in carry[:2]])
        carry = sgd_update(params, carry, data, rate, frozen and frozen[k])
    log_pi = jax.nn.log_softmax(carry[0]["logits"][: len(data["action"])])
    log_prob = disco.chosen(log_pi, data["action"])
    return -jnp.mean(data["reward"] * log_prob), (seen, log_pi)


@pytest.mark.parametrize("num_updates", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_meta_gradient_equals_finite_differences(x64, params, num_updates):
    """Policies and values that the rule reads have no derivative, as published."""
    data, start = random_data(0), as_double(disco.start())
    # At 0 the first update's RNN has no influence on anything.
    start = start._replace(hidden=jnp.linspace(-1.0, 1.0, 128))
    rng = np.random.default_rng(1)
    ways = [
        {k: rng.normal(size=x.shape) * (select in k) for k, x in params.items()}
        for select in ("lstm/lstm", "mlp", "sequential", "linear_", "unroll")
    ]

    # So long a step that y and z, which the second update reads, change.
    of = functools.partial(
        objective, num_updates=num_updates, start=start, rate=1_000.0
    )

    @jax.jit
    def both(params):
        grads, (seen, _) = jax.grad(of, has_aux=True)(params, data)

        def slope(way):
            def moved(size):
                new = jax.tree.map(lambda x, d: x + size * d, params, way)
                return of(new, data, frozen=seen)[0]

            high, low = jax.lax.map(moved, jnp.array([1e-6, -1e-6]))
            found = sum(jnp.sum(g * way[k]) for k, g in grads.items())
            return found, (high - low) / 2e-6

        return jax.lax.map(slope, jax.tree.map(lambda *x: jnp.stack(x), *ways))

    found, slopes = both(params)
    assert (np.abs(slopes) > 1e-6).sum() >= 4 + (num_updates > 1)
    np.testing.assert_allclose(found, slopes, rtol=1e-4, atol=1e-8)


def test_shards_share_moments_and_the_memory_of_updates(x64, params):
    """Each reads one of the two environments."""

    @jax.jit
    def both(data):
        state = as_double(disco.start())
        parts = jax.tree.map(lambda x: jnp.stack(jnp.split(x, 2, axis=1)), data)
        mapped = jax.vmap(by_rule, (None, None, 0), axis_name=parallel.AXIS)
        return by_rule(params, state, data), mapped(params, state, parts)

    whole, parts = both(random_data(0))
    for shard in range(2):
        of_shard = jax.tree.map(lambda x, i=shard: x[:, i : i + 1], whole[:2])
        found = jax.tree.map(lambda x, i=shard: x[i], parts)
        chex.assert_trees_all_close(found, (*of_shard, whole[2]), rtol=1e-9, atol=1e-12)


def test_successors_of_rows_that_are_named_or_follow():
    x = jnp.arange(8).reshape(4, 2)
    plain = Trajectory(*[None] * 3, jnp.zeros((2, 2)), *[None] * 4)
    assert successors(x, plain).tolist() == [[2, 3], [4, 5]]
    named = plain._replace(following=jnp.array([[1, 3], [2, 2]]))
    assert successors(x, named).tolist() == [[2, 7], [4, 5]]


# The file.


def written(path, change):
    arrays = dict(disco.load(rule_weights()))
    change(arrays)
    np.savez(path, **arrays)
    return str(path)


def test_numbers_of_a_file_are_read_once_and_kept():
    found = disco.load(rule_weights())
    assert found is disco.load(rule_weights())
    assert {k: x.shape for k, x in found.items()} == disco.SHAPES
    assert sum(x.size for x in found.values()) == 754_778 and len(found) == 42
    fresh = jax.eval_shape(disco.rule().init, jax.random.key(0))
    assert {k: x.shape for k, x in fresh.items()} == disco.SHAPES
    with pytest.raises(ValueError, match="read-only"):
        found["lstm/linear/b"][0] = 1.0


def drop(arrays):
    del arrays["lstm/linear/b"], arrays["lstm/linear_4/w"]


def swap(arrays):
    arrays["lstm/linear/w"] = arrays["lstm/linear/w"].T


def widen(arrays):
    arrays["lstm/linear/w"] = arrays["lstm/linear/w"].astype(np.float64)


def spoil(arrays):
    arrays["lstm/linear/b"] = np.full(256, np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, "2 of the rule's 42 arrays are missing: lstm/linear/b, lstm/linear_4/w"),
        (lambda arrays: arrays.update(x=np.zeros(1)), "arrays that the rule lacks: x"),
        (swap, r"lstm/linear/w is float32\[256, 128\], expected float32\[128, 256\]"),
        (widen, r"lstm/linear/w is float64\[128, 256\], expected float32\[128, 256\]"),
        (spoil, "lstm/linear/b has numbers that are not finite"),
        (lambda arrays: arrays.clear(), "42 of the rule's 42 arrays are missing: "),
    ],
    ids=["missing", "foreign", "shape", "dtype", "nan", "empty"],
)
def test_a_file_with_other_arrays_is_refused(tmp_path, change, words):
    path = written(tmp_path / "rule.npz", change)
    with pytest.raises(ValueError, match=f"^'{path}': {words}"):
        disco.load(path)


def test_a_file_that_is_none_or_damaged_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"^'{tmp_path}/no.npz': No such file"):
        disco.load(f"{tmp_path}/no.npz")
    with pytest.raises(
        ValueError, match=f"^'{tmp_path}': is no .npz .* Is a directory"
    ):
        disco.load(str(tmp_path))
    for path in (None, 3, "nul\0"):
        with pytest.raises(ValueError, match="^" + re.escape(f"{path!r}: ")):
            disco.load(path)
    whole = Path(rule_weights()).read_bytes()
    bent = bytearray(whole)
    bent[len(whole) // 2] ^= 1
    for number, content in enumerate((b"", b"text", whole[:-9], whole[:999], bent)):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^'{path}': is no .npz file, or damaged"):
            disco.load(str(path))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="is no .npz file, or damaged: "):
        disco.load(str(tmp_path / "one.npy"))
    np.savez(tmp_path / "o.npz", **{"lstm/linear/b": np.array([object()])})
    with pytest.raises(ValueError, match="damaged: Object arrays cannot be loaded"):
        disco.load(str(tmp_path / "o.npz"))


# The published numbers.


@functools.cache
def case_file():
    return dict(np.load(Path(FOLDER) / "disco_cases.npz"))


def of_case(prefix):
    return {k[len(prefix) :]: x for k, x in case_file().items() if k.startswith(prefix)}


def case_data(case, number):
    found = of_case(f"{case}/step{number}/in/")
    length, ends = len(found["rewards"]), found["is_terminal"]
    data = dict(
        behaviour_logits=found["behaviour_logits"][:length],
        action=found["actions"][:length],
        reward=found["rewards"],
        discount=np.float32(0.997) * (1 - ends).astype(np.float32),
        ended=ends,
        weight=found["mask"],
    )
    return {name: found[f"agent/{name}"] for name in NAMES}, data


def everything(params, state, target, outputs, data):
    """One update, with all that the cases name."""
    trajectory = Trajectory(outputs=outputs, target_outputs=target, **data)
    found, _ = disco.values(state, trajectory)
    read = disco.inputs(params, "lstm/", trajectory, found)
    own = disco.inputs(params, oracle.RNN, trajectory, found)
    memory = disco.memorize(params, read, trajectory)
    *_, embedding = disco.heads(params, memory, hidden=state.hidden)
    targets, new = disco.targets(params, state, trajectory)

    def loss(outputs):
        step = disco.loss(outputs, targets, trajectory)
        return jnp.sum(data["weight"] * step) / (data["weight"].sum() + 1e-8)

    value, grads = jax.value_and_grad(loss)(outputs)
    parts = disco.losses(outputs, targets, trajectory)
    target = jax.tree.map(lambda x, y: 0.9 * x + 0.1 * y, target, outputs)
    named = {
        "pi_hat": targets.pi,
        "y_hat": targets.y,
        "z_hat": targets.z,
        "meta_input_emb": embedding,
        "traj_inputs": read.steps,
        "traj_action_emb": read.actions,
        "meta_inputs": own.steps,
        "value/adv": found.advantage,
        "value/normalized_adv": found.norm_advantage,
        "value/q_target": found.q_target,
        "value/q_td": found.td_error,
        "value/normalized_q_td": found.norm_td_error,
        "value/qv_adv": found.q_advantage,
        "value/normalized_qv_adv": found.norm_q_advantage,
        "value/q_value": found.q,
        "loss": value,
        "loss_per_step": disco.loss(outputs, targets, trajectory),
        "loss_meta_per_step": parts.pi + parts.y + parts.z + parts.aux_pi,
        "loss_value_per_step": disco.VALUE_COST * parts.q,
        "kl_pi_mean": parts.pi.mean(),
        "kl_aux_mean": parts.aux_pi.mean(),
        "q_ce_mean": parts.q.mean(),
        "state/rnn/hidden": new.hidden,
        "state/rnn/cell": new.cell,
    }
    for name, moments in (("adv", new.advantage), ("td", new.td_error)):
        fields = ("moment1", "moment2", "decay_product")
        named |= {
            f"state/{name}_ema/{k}": x for k, x in zip(fields, moments, strict=True)
        }
    named |= {f"grad/{name}": x for name, x in grads.items()}
    small = {
        n: x if n in ("logits", "aux_pi") else x[:1, :1] for n, x in target.items()
    }
    named |= {f"state/target/{name}": x for name, x in small.items()}
    return named, new, target


def deviation(got, want):
    return np.abs(np.asarray(got) - want).max() / max(np.abs(want).max(), 1e-30)


LOOSE = {"traj_inputs": 5e-4, "meta_inputs": 5e-4, "grad/q": 3e-3}  # see the cases


@published
@pytest.mark.parametrize("way", ["jit", "vmap"])
@pytest.mark.parametrize(("case", "num_updates"), [("A", 3), ("B", 1)])
def test_every_array_of_the_published_agent(case, num_updates, way, record_property):
    params = disco.load(f"{FOLDER}/disco_103.npz")
    step = functools.partial(everything, params)
    state = disco.start()
    target = {name: case_file()[f"{case}/in/target/{name}"] for name in NAMES}
    if way == "vmap":  # two copies, of which the first is looked at
        step = jax.vmap(step)
        state, target = jax.tree.map(lambda x: jnp.stack([x, x]), (state, target))
    step = jax.jit(step)
    for number in range(num_updates):
        inputs = case_data(case, number)
        if way == "vmap":
            inputs = jax.tree.map(lambda x: np.stack([x, x]), inputs)
        found, state, target = step(state, target, *inputs)
        if way == "vmap":
            found = jax.tree.map(lambda x: x[0], found)
        want = of_case(f"{case}/step{number}/out/")
        assert want.keys() == found.keys() and len(want) == 40
        far = {k: deviation(found[k], x) for k, x in want.items()}
        record_property(f"{case}{number}", far)
        worst = {k: x for k, x in far.items() if not x < LOOSE.get(k, 1e-4)}
        assert not worst


@published
@pytest.mark.parametrize("num_updates", [1, 2])
def test_meta_gradients_of_the_published_agent(num_updates):
    params = disco.load(f"{FOLDER}/disco_103.npz")
    outputs, data = case_data("A", 0)
    target = {name: case_file()[f"A/in/target/{name}"] for name in NAMES}
    data |= dict(outputs=outputs, target_outputs=target)
    grad = jax.jit(jax.value_and_grad(objective, has_aux=True), static_argnums=2)
    (value, _), grads = grad(params, data, num_updates, disco.start())
    want = of_case(f"metagrad/K{num_updates}/")
    np.testing.assert_allclose(value, want["J"], rtol=1e-5)
    norms = {k: want[f"norm/{k}"] for k in params}
    total = np.sqrt(sum(x**2 for x in norms.values()))
    np.testing.assert_allclose(total, [0.08452, 0.13906][num_updates - 1], rtol=1e-3)
    for name, grad in grads.items():
        norm = np.linalg.norm(np.asarray(grad).ravel())
        np.testing.assert_allclose(norm, norms[name], rtol=0, atol=1e-4 * total)
        if f"grad/{name}" in want:
            exact = want[f"grad/{name}"]
            np.testing.assert_allclose(grad, exact, rtol=0, atol=1e-4 * total)
        if num_updates == 1 and "unroll" in name:
            assert norm == 0
