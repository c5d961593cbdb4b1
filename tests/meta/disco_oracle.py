"""DiscoRL's rule in numpy and float64, as the formulas say and step by step.

Arrays are time-major, of one update. `following` names the row that a step led to.
"""

import numpy as np

RNN = "lstm/~/meta_lstm/~unroll/"


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def slog(x):
    return np.sign(x) * np.log(1 + np.abs(x))


def squash(x):
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + 0.001 * x


def unsquash(x):
    e = 0.001
    u = (np.sqrt(1 + 4 * e * (e + 1 + np.abs(x))) - 1) / (2 * e)
    return np.sign(x) * (u**2 - 1)


def lstm(w, b, x, hidden, cell):
    i, g, f, o = np.split(np.concatenate([x, hidden]) @ w + b, 4)
    cell = sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(cell), cell


def layer(p, name, x):
    w = p[name + "/w"]
    return x @ (w[0] if w.ndim == 3 else w) + p[name + "/b"]


def mlp(p, name, x):
    return layer(p, name + "/~/linear_1", relu(layer(p, name + "/~/linear_0", x)))[0]


def block(p, name, rows):  # [A, n]
    mean = rows.mean(0)
    return np.stack([relu(layer(p, name, np.concatenate([r, mean]))) for r in rows])


def values(d):
    """Returns, advantages and TD errors, without their normalisation."""
    steps, batch = d["action"].shape
    pi, mu = softmax(d["outputs"]["logits"]), softmax(d["behaviour_logits"])
    bins = np.arange(-300, 301)
    q, q_target = (
        unsquash((softmax(d[k]["q"]) * bins).sum(-1))
        for k in ("outputs", "target_outputs")
    )
    v, v_target = (pi * q).sum(-1), (pi * q_target).sum(-1)
    returns = np.zeros((steps, batch))
    for n in range(batch):
        for t in reversed(range(steps)):
            after = v_target[d["following"][t, n], n]
            if not d["ended"][t, n] and t + 1 < steps:
                a = d["action"][t + 1, n]
                ratio = pi[t + 1, n, a] / mu[t + 1, n, a]
                error = returns[t + 1, n] - q_target[t + 1, n, a]
                after += 0.95 * min(1, ratio) * error
            returns[t, n] = d["reward"][t, n] + d["discount"][t, n] * after
    t, n = np.indices((steps, batch))
    return dict(
        pi=pi,
        mu=mu,
        q=q,
        v=v,
        q_target=q_target,
        returns=returns,
        adv=returns - v_target[:steps],
        td=returns - q[t, n, d["action"]],
        q_adv=q_target - v_target[..., None],
    )


def moved(moments, x):
    first, second, start = moments
    return (
        0.99 * first + 0.01 * x.mean(),
        0.99 * second + 0.01 * (x**2).mean(),
        0.99 * start,
    )


def scale(moments):
    first, second, start = moments
    mean = first / (1 - start)
    var = max(0.0, second / (1 - start) - mean**2)
    return mean, np.sqrt(var + 1e-12) + 1e-6


def inputs(p, prefix, d, found, moments):
    """[T, B, 27] and [T, B, A, 2]."""
    steps, batch = d["action"].shape
    mean, std = scale(moments)
    norm = lambda x: (x - mean) / std  # noqa: E731
    pi, mu = found["pi"], found["mu"]
    target_pi = softmax(d["target_outputs"]["logits"])
    y, target_y, z, target_z = (
        np.apply_along_axis(
            lambda x, name=name: mlp(p, prefix + name, softmax(x)), -1, d[who][key]
        )
        for key, name in (("y", "mlp"), ("z", "mlp_1"))
        for who in ("outputs", "target_outputs")
    )
    actions, rows = [], []
    for t, n in np.ndindex(steps, batch):
        a, then = d["action"][t, n], d["following"][t, n]
        each = np.stack(
            [
                pi[t, n],
                mu[t, n],
                target_pi[t, n],
                z[t, n],
                target_z[t, n],
                slog(found["q_target"][t, n]),
                slog(found["q_adv"][t, n]),
                norm(found["q_adv"][t, n]),
                np.eye(pi.shape[-1])[a],
            ],
            axis=-1,
        )
        each = block(p, prefix + "sequential/conv1_d", each)
        each = block(p, prefix + "sequential/conv1_d_1", each)
        b = d["ended"][t, n] and d["discount"][t, n] == 0
        row = [pi[t, n, a], mu[t, n, a], slog(d["reward"][t, n]), 1 - b]
        row += [slog(found["v"][i, n]) for i in (t, then)]
        row += [slog(found["adv"][t, n]), norm(found["adv"][t, n]), target_pi[t, n, a]]
        row += [y[i, n] for i in (t, then)] + [target_y[i, n] for i in (t, then)]
        for f in (z, target_z):
            row += [f[t, n, a]]
            row += [pi[i, n] @ f[i, n] for i in (t, then)]
            row += [f[i, n].max() for i in (t, then)]
        rows.append([*row, *each.mean(0), *each[a]])
        actions.append(each)
    return (
        np.array(rows).reshape(steps, batch, 27),
        np.array(actions).reshape(steps, batch, -1, 2),
    )


def update(p, state, d):
    """Targets, losses `[T, B]`, and the next state: moments, moments, hidden, cell."""
    steps, batch = d["action"].shape
    found = values(d)
    adv_moments, td_moments = (
        moved(state[0], found["adv"]),
        moved(state[1], found["td"]),
    )
    hidden, cell = state[2:]
    x, e = inputs(p, "lstm/", d, found, adv_moments)
    own, _ = inputs(p, RNN, d, found, adv_moments)
    factor = layer(p, "lstm/linear", hidden)
    w, b = p["lstm/lstm/linear/w"], p["lstm/lstm/linear/b"]
    pi, y, z, seen = {}, {}, {}, []
    for n in range(batch):
        h, c = np.zeros(256), np.zeros(256)
        for t in reversed(range(steps)):
            if d["ended"][t, n]:
                h, c = np.zeros(256), np.zeros(256)
            h, c = lstm(w, b, x[t, n], h, c)
            m = h * factor
            emb = layer(p, "lstm/linear_1", m)
            y[t, n] = layer(p, "lstm/linear_2", m)
            z[t, n] = layer(p, "lstm/linear_3", m)
            each = np.stack([np.concatenate([m, row]) for row in e[t, n]])
            each = block(p, "lstm/sequential_1/conv1_d", each)
            pi[t, n] = layer(p, "lstm/linear_4", each)[:, 0]
            of_y = mlp(p, RNN + "mlp", softmax(y[t, n]))
            of_step = np.concatenate([own[t, n], emb, [of_y]])
            seen.append(layer(p, RNN + "mlp_2/~/linear_0", of_step))
    w, b = p[RNN + "lstm/linear/w"], p[RNN + "lstm/linear/b"]
    hidden, cell = lstm(w, b, np.mean(seen, 0), hidden, cell)
    new = adv_moments, td_moments, hidden, cell
    targets = dict(pi=pi, y=y, z=z, q=found["returns"])
    return targets, loss(d, targets), new


def loss(d, targets):
    steps, batch = d["action"].shape
    total = np.zeros((steps, batch))

    def kl(target, logits):
        p = softmax(target)
        return p @ (np.log(p) - log_softmax(logits))

    o = d["outputs"]
    for t, n in np.ndindex(steps, batch):
        a, then = d["action"][t, n], d["following"][t, n]
        total[t, n] = kl(targets["pi"][t, n], o["logits"][t, n])
        total[t, n] += kl(targets["y"][t, n], o["y"][t, n])
        total[t, n] += kl(targets["z"][t, n], o["z"][t, n, a])
        if not (d["ended"][t, n] and d["discount"][t, n] == 0):
            total[t, n] += kl(o["logits"][then, n], o["aux_pi"][t, n, a])
        x = np.clip(squash(targets["q"][t, n]), -300, 300)
        low, high = int(np.floor(x)), int(np.ceil(x))
        p = (high - x) / (high - low + 1e-5)
        log_q = log_softmax(o["q"][t, n, a])
        total[t, n] -= 0.2 * (p * log_q[low + 300] + (1 - p) * log_q[high + 300])
    return total
