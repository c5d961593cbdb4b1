"""Norms of per-transition gradients from the inputs and output gradients of layers.

The loss is traced to a jaxpr. Where a parameter enters linearly (a product of
matrices, a convolution, a row look-up, a scale, a bias), a zero is added to the
equation's output; the gradient with respect to that zero and the equation's other
operand determine the parameter's gradient. A parameter that is used in any other way
is *loose*: its gradient is taken as it is.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from rljax._varying import varying

CALLS = ("jit", "pjit")
STEPS = (
    *("reshape", "transpose", "squeeze", "expand_dims", "convert_element_type"),
    *("broadcast_in_dim", "slice", "copy"),
)
PRODUCTS = ("dot_general", "conv_general_dilated", "mul")
SUMS = ("add", "sub")

T = TypeVar("T")  # a tree
E = TypeVar("E")  # one transition, any tree
R = TypeVar("R")  # a result, any tree


def _aval(v: Var | Literal) -> ShapedArray:
    """Shape and dtype of a variable."""
    aval: Any = v.aval  # typed as an abstract value, of which no shape is known
    return aval


class Tagged(NamedTuple):
    """A value that is a parameter, reshaped, cast or the like by `steps`."""

    value: jax.Array
    leaf: int
    steps: tuple[JaxprEqn, ...]


Value = jax.Array | Tagged
UseFn = Callable[[JaxprEqn, Sequence[Value]], list[jax.Array]]  # operands to outputs


class Use(NamedTuple):
    """An equation whose operand `position` is a parameter, and linear in it."""

    leaf: int
    steps: tuple[JaxprEqn, ...]
    eqn: JaxprEqn
    position: int

    @property
    def kind(self) -> str:
        """Name of the primitive."""
        return self.eqn.primitive.name

    @property
    def out(self) -> ShapedArray:
        """Shape and dtype of the output."""
        return _aval(self.eqn.outvars[0])


class Trace(NamedTuple):
    """A loss of one transition and how it uses its parameters on a platform."""

    jaxpr: Jaxpr
    consts: Sequence[jax.Array]
    platform: str | None  # None: one that no `platform_dependent` names
    uses: list[Use]  # of the leaves that are not loose, in order of evaluation
    loose: dict[int, str]  # leaf -> the primitive that uses it


def _bind(eqn: JaxprEqn, values: Sequence[jax.Array]) -> list[jax.Array]:
    """Evaluate one equation."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _live(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations that the outputs need, so that dead uses make nothing loose."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or needed.intersection(eqn.outvars):
            live.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    return live[::-1]


def _sloped(jaxpr: Jaxpr, matters: Sequence[bool]) -> set[Var]:
    """The variables in which an output that matters may have a derivative.

    Not in variables on which only stopped gradients or choices, say argmax, depend.
    """
    pairs = zip(jaxpr.outvars, matters, strict=True)
    sloped = {v for v, m in pairs if m and not isinstance(v, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if sloped.intersection(eqn.outvars) and eqn.primitive.name != "stop_gradient":
            inputs = (v for v in eqn.invars if not isinstance(v, Literal))
            sloped.update(v for v in inputs if _is_kind(v, jnp.inexact))
    return sloped


def _is_kind(v: Var | Literal, kind: type[jnp.inexact]) -> bool:
    return jnp.issubdtype(_aval(v).dtype, kind)


def _is_step(eqn: JaxprEqn) -> bool:
    name, floating = eqn.primitive.name, _is_kind(eqn.outvars[0], jnp.floating)
    return name in STEPS and len(eqn.invars) == 1 and floating


def _untagged(values: Sequence[Value]) -> list[jax.Array]:
    return [x.value if isinstance(x, Tagged) else x for x in values]


def _branches(eqn: JaxprEqn) -> list[tuple[tuple[str, ...] | None, ClosedJaxpr]]:
    """Platforms and program of each branch of a `platform_dependent`.

    The platforms of the default branch are None.
    """
    platforms = eqn.params.get("branches_platforms") or ()
    programs = eqn.params["branches"] if platforms else ()
    return list(zip(platforms, programs, strict=True))


def _called(eqn: JaxprEqn, platform: str | None) -> ClosedJaxpr | None:
    """The program that the equation runs on the platform, if it runs one."""
    if eqn.primitive.name in CALLS:
        return eqn.params["jaxpr"]
    for platforms, branch in _branches(eqn):
        if platforms is None or platform in platforms:
            return branch
    return None


def _platforms(jaxpr: Jaxpr) -> set[str]:
    """The platforms that a program has branches for."""
    found: set[str] = set()
    for eqn in jaxpr.eqns:
        for platforms, branch in _branches(eqn):
            found |= {*(platforms or ()), *_platforms(branch.jaxpr)}
        if eqn.primitive.name in CALLS:
            found |= _platforms(eqn.params["jaxpr"].jaxpr)
    return found


def _evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[jax.Array],
    args: Sequence[Value],
    *,
    use: UseFn,
    matters: Sequence[bool],
    platform: str | None,
) -> list[Value]:
    """Evaluate; `use` gives the outputs of an equation that uses tagged values.

    Only of equations through which an output that matters has a derivative.
    """
    sloped = _sloped(jaxpr, matters)
    env: dict[Var, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(v: Var | Literal) -> Value:
        return v.val if isinstance(v, Literal) else env[v]

    for eqn in _live(jaxpr):
        values = [read(v) for v in eqn.invars]
        tagged = [x for x in values if isinstance(x, Tagged)]
        name = eqn.primitive.name
        flags = [v in sloped for v in eqn.outvars]
        inner = _called(eqn, platform) if tagged else None
        if inner:
            outs = _evaluate(
                inner.jaxpr,
                inner.consts,
                values[-len(inner.in_avals) :],  # before them stands a branch's index
                use=use,
                matters=flags,
                platform=platform,
            )
        elif tagged and _is_step(eqn):
            (x,) = tagged
            (value,) = _bind(eqn, [x.value])
            outs = [Tagged(value=value, leaf=x.leaf, steps=(*x.steps, eqn))]
        elif tagged and any(flags) and name != "stop_gradient":
            outs = use(eqn, values)
        else:
            outs = _bind(eqn, _untagged(values))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def by_platform(
    compute: Callable[[Trace], R],
    loss_fn: Callable[[T, E], jax.Array],
    *,
    params: T,
    transition: E,
) -> R:
    """Apply `compute` to the loss of one transition, traced.

    Where the loss has a `platform_dependent`, so has the result: each of its branches
    follows the parameters through the loss's branch for the same platform.
    """
    closed = jax.make_jaxpr(loss_fn)(params, transition)

    def on(platform: str | None) -> R:
        return compute(_trace(closed, params, transition, platform=platform))

    platforms = sorted(_platforms(closed.jaxpr))
    if not platforms:
        return on(None)
    branches = {platform: functools.partial(on, platform) for platform in platforms}
    return jax.lax.platform_dependent(default=functools.partial(on, None), **branches)


def _trace(
    closed: ClosedJaxpr, params: object, transition: object, *, platform: str | None
) -> Trace:
    """Find where the loss of one transition uses its parameters."""
    num_leaves = len(jax.tree.leaves(params))
    uses: list[Use] = []
    loose: dict[int, str] = {}

    def find(eqn: JaxprEqn, values: Sequence[Value]) -> list[jax.Array]:
        tagged = [(i, x) for i, x in enumerate(values) if isinstance(x, Tagged)]
        name = eqn.primitive.name
        linear = name in PRODUCTS + SUMS or (name == "gather" and tagged[0][0] == 0)
        real = _is_kind(eqn.outvars[0], jnp.floating)
        if linear and real and len(tagged) == 1:
            position, x = tagged[0]
            uses.append(Use(leaf=x.leaf, steps=x.steps, eqn=eqn, position=position))
        else:
            loose.update({x.leaf: name for _, x in tagged})
        return _bind(eqn, _untagged(values))

    def run(leaves: Sequence[jax.Array]) -> list[jax.Array]:
        args: list[Value] = list(leaves)
        for i in range(num_leaves):
            args[i] = Tagged(value=leaves[i], leaf=i, steps=())
        outs = _evaluate(
            closed.jaxpr,
            closed.consts,
            args,
            use=find,
            matters=[True],
            platform=platform,
        )
        loose.update({x.leaf: "the loss" for x in outs if isinstance(x, Tagged)})
        return _untagged(outs)

    jax.eval_shape(run, jax.tree.leaves((params, transition)))
    covered = [use for use in uses if use.leaf not in loose]
    return Trace(
        jaxpr=closed.jaxpr,
        consts=closed.consts,
        platform=platform,
        uses=covered,
        loose=loose,
    )


class Parts(NamedTuple):
    """Of one transition: all that determines the gradient."""

    others: list[jax.Array | None]  # per use, its other operand; None for a sum
    deltas: list[jax.Array]  # per use, the gradient with respect to its output
    loose: dict[int, jax.Array]  # the gradients of the loose leaves


def backward(
    traced: Trace, leaves: Sequence[jax.Array], transition: object
) -> tuple[jax.Array, Parts]:
    """Loss and gradients of one transition: one forward and backward pass."""

    def forward(
        zeros: list[jax.Array], loose: dict[int, jax.Array]
    ) -> tuple[jax.Array, list[jax.Array | None]]:
        others: list[jax.Array | None] = []

        def perturb(eqn: JaxprEqn, values: Sequence[Value]) -> list[jax.Array]:
            use = traced.uses[len(others)]
            other = [x for x in values if not isinstance(x, Tagged)]
            others.append(None if use.kind in SUMS else other[0])
            (out,) = _bind(eqn, _untagged(values))
            return [out + zeros[len(others) - 1]]

        args: list[Value] = [
            loose[i] if i in loose else Tagged(value=leaf, leaf=i, steps=())
            for i, leaf in enumerate(leaves)
        ]
        args += jax.tree.leaves(transition)
        outs = _evaluate(
            traced.jaxpr,
            traced.consts,
            args,
            use=perturb,
            matters=[True],
            platform=traced.platform,
        )
        (loss,) = _untagged(outs)
        return loss, others

    zeros = [jnp.zeros(use.out.shape, use.out.dtype) for use in traced.uses]
    zeros = varying(zeros, transition)
    loose = {i: leaves[i] for i in traced.loose}
    both = jax.value_and_grad(forward, argnums=(0, 1), has_aux=True)
    (loss, others), (deltas, loose_grads) = both(zeros, loose)
    return loss, Parts(others=others, deltas=deltas, loose=loose_grads)


def gradient(
    use: Use, leaf: jax.Array, *, other: jax.Array | None, delta: jax.Array
) -> jax.Array:
    """The leaf's gradient by one use: the transpose of the equation applied to delta.

    With a leading axis on `other` and `delta`, the sum over that axis.
    """

    def linear(value: jax.Array, other: jax.Array | None) -> jax.Array:
        for step in use.steps:
            (value,) = _bind(step, [value])
        if use.kind in SUMS:
            value = jnp.broadcast_to(value, use.out.shape).astype(use.out.dtype)
            return -value if use.kind == "sub" and use.position == 1 else value
        assert other is not None  # only a sum has none
        operands = [value, other] if use.position == 0 else [other, value]
        return _bind(use.eqn, operands)[0]

    def batched(value: jax.Array) -> jax.Array:
        if delta.ndim == len(use.out.shape):
            return linear(value, other)
        each = jax.vmap(lambda other: linear(value, other), axis_size=len(delta))
        return each(other)

    return jax.linear_transpose(batched, leaf)(delta)[0]


def _isometric(step: JaxprEqn) -> bool:
    """Tell whether the transpose of this step keeps norms."""
    before, after = (_aval(v[0]).shape for v in (step.invars, step.outvars))
    repeats = math.prod(before) != math.prod(after)
    return step.primitive.name != "broadcast_in_dim" or not repeats


def _family(use: Use) -> tuple[object, ...] | None:
    """Name a family; uses of a leaf in one family have rows that go together."""
    if not all(map(_isometric, use.steps)):
        return None
    steps = tuple((step.primitive.name, str(step.params)) for step in use.steps)
    params = use.eqn.params
    if use.kind == "dot_general":
        contracting, batch = params["dimension_numbers"]
        axes = contracting[use.position], batch[use.position]
        # A product contracts axes in pairs: sorted, they pair the same way each time.
        return use.kind, steps, tuple(sorted(axes[0])), tuple(axes[1])
    if use.kind == "conv_general_dilated":
        plain = params["batch_group_count"] == 1 and use.position == 1
        return (use.kind, steps, str(params)) if plain else None
    if use.kind == "gather":
        rows = _gathers_rows(use.eqn)
        return (use.kind, steps, params["mode"].name) if rows else None
    return None


def _gathers_rows(eqn: JaxprEqn) -> bool:
    table, indices = (_aval(v) for v in eqn.invars)
    numbers, before = eqn.params["dimension_numbers"], indices.ndim - 1
    return (
        indices.shape[-1] == 1
        and numbers.collapsed_slice_dims == (0,)
        and numbers.start_index_map == (0,)
        and not numbers.operand_batching_dims
        and numbers.offset_dims == tuple(range(before, before + table.ndim - 1))
        and eqn.params["slice_sizes"] == (1, *table.shape[1:])
        and eqn.params["mode"].name in ("CLIP", "FILL_OR_DROP", "PROMISE_IN_BOUNDS")
    )


def _matrices(x: jax.Array, *axes: Sequence[int]) -> jax.Array:
    """Bring groups of axes to one axis each, in the order given."""
    order = [i for group in axes for i in group]
    sizes = [math.prod(x.shape[i] for i in group) for group in axes]
    return x.transpose(order).reshape(sizes)


def _dot_rows(
    use: Use, other: jax.Array, delta: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`[G, T, D]` inputs and `[G, T, O]` output gradients of a product of matrices."""
    contracting, batch = use.eqn.params["dimension_numbers"]
    mine, its = use.position, 1 - use.position
    pairs = sorted(zip(contracting[mine], contracting[its], strict=True))
    summed, grouped = [axis for _, axis in pairs], list(batch[its])
    free = [i for i in range(other.ndim) if i not in (*summed, *grouped)]
    inputs = _matrices(other, grouped, free, summed)
    after, last = len(grouped) + len(free), delta.ndim
    groups = range(len(grouped))
    if mine == 1:  # the output's axes: groups, the input's, the parameter's
        deltas = _matrices(
            delta, groups, range(len(grouped), after), range(after, last)
        )
    else:
        middle = last - len(free)
        deltas = _matrices(
            delta, groups, range(middle, last), range(len(grouped), middle)
        )
    return inputs, deltas


def _patches(x: jax.Array, params: dict[str, Any], kernel: Sequence[int]) -> jax.Array:
    """`[N, *spatial, C]` to `[N, *positions, *kernel, C]`."""
    dilated = zip(params["padding"], params["lhs_dilation"], strict=True)
    edges = [(low, high, dilation - 1) for (low, high), dilation in dilated]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    strides, dilations = params["window_strides"], params["rhs_dilation"]
    for i, (size, stride, dilation) in enumerate(
        zip(kernel, strides, dilations, strict=True), start=1
    ):
        count = (x.shape[i] - (size - 1) * dilation - 1) // stride + 1
        windows = [
            jax.lax.slice_in_dim(
                x,
                start_index=k * dilation,
                limit_index=k * dilation + (count - 1) * stride + 1,
                stride=stride,
                axis=i,
            )
            for k in range(size)
        ]
        x = jnp.stack(windows, axis=-2)
    return x


def _conv_rows(
    use: Use, other: jax.Array, delta: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Patches and output gradients of a convolution; G: its feature groups."""
    params, kernel = use.eqn.params, _aval(use.eqn.invars[1]).shape
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    n, channel, *spatial = numbers.lhs_spec
    sizes = [kernel[i] for i in numbers.rhs_spec[2:]]
    x = _patches(other.transpose((n, *spatial, channel)), params, sizes)
    inputs = x.reshape(-1, math.prod(sizes), groups, x.shape[-1] // groups)
    inputs = inputs.transpose(2, 0, 1, 3).reshape(groups, len(inputs), -1)
    n, channel, *spatial = numbers.out_spec
    y = delta.transpose((n, *spatial, channel))
    return inputs, y.reshape(inputs.shape[1], groups, -1).transpose(1, 0, 2)


def precise(x: jax.Array) -> jax.Array:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def squared(x: jax.Array, axis: tuple[int, ...] | None = None) -> jax.Array:
    """Sum of squares."""
    return jnp.sum(jnp.square(precise(x)), axis=axis)


def _product_norm(inputs: jax.Array, deltas: jax.Array) -> jax.Array:
    """The squared norm of `inputs^T deltas`, summed over G."""
    positions, size = inputs.shape[1], inputs.shape[2] * deltas.shape[2]
    if positions == 1:
        return jnp.sum(squared(inputs, (1, 2)) * squared(deltas, (1, 2)))
    inputs, deltas = precise(inputs), precise(deltas)
    if positions == 2:  # like inputs with opposite gradients would cancel in the Grams
        inputs, deltas = (_sum_and_difference(x) for x in (inputs, deltas))
    if 2 * positions**2 < size:  # the Gram form
        grams = [jnp.einsum("gti,gsi->gts", x, x) for x in (inputs, deltas)]
        return jnp.maximum(jnp.sum(grams[0] * grams[1]), 0.0)
    return squared(jnp.einsum("gti,gto->gio", inputs, deltas))


def _sum_and_difference(x: jax.Array) -> jax.Array:
    """The two positions rotated by 45 degrees, which keeps `inputs^T deltas`."""
    first, second = x[:, :1], x[:, 1:]
    both = jnp.concatenate([first + second, first - second], axis=1)
    return both * math.sqrt(0.5)


def _row_norm(
    uses: list[Use], others: list[jax.Array], deltas: list[jax.Array]
) -> jax.Array:
    """The squared norm of a look-up table's gradient; equal rows add up first."""
    pairs = zip(deltas, others, strict=True)
    count = _aval(uses[0].eqn.invars[0]).shape[0]
    rows = jnp.concatenate([indices.reshape(-1) for indices in others])
    if rows.dtype.itemsize < 4:  # `count` might not fit
        rows = rows.astype(jnp.int32)
    delta = precise(jnp.concatenate([x.reshape(y.size, -1) for x, y in pairs]))
    if uses[0].eqn.params["mode"].name == "CLIP":
        rows = jnp.clip(rows, 0, count - 1)
    inside = (rows >= 0) & (rows < count)
    delta = jnp.where(inside[:, None], delta, 0.0)
    same = rows[:, None] == rows[None, :]
    return jnp.maximum(jnp.sum(jnp.where(same, delta @ delta.T, 0.0)), 0.0)


def squared_norm(
    leaf: jax.Array,
    *,
    uses: list[Use],
    others: list[jax.Array | None],
    deltas: list[jax.Array],
) -> jax.Array:
    """The squared norm of the gradient of one leaf for one transition."""
    families = [_family(use) for use in uses]
    kind = None
    if families and families[0] is not None and len(set(families)) == 1:
        kind = families[0][0]
    given = [other for other in others if other is not None]  # all, if not of a sum
    if kind in ("dot_general", "conv_general_dilated"):
        rows = _dot_rows if kind == "dot_general" else _conv_rows
        pairs = [
            rows(use, other, delta)
            for use, other, delta in zip(uses, given, deltas, strict=True)
        ]
        return _product_norm(
            inputs=jnp.concatenate([inputs for inputs, _ in pairs], axis=1),
            deltas=jnp.concatenate([outputs for _, outputs in pairs], axis=1),
        )
    positions = sum(math.prod(x.shape) for x in given) if kind == "gather" else 0
    if kind == "gather" and 2 * positions**2 < leaf.size:
        return _row_norm(uses, given, deltas)
    grads = [
        gradient(use, leaf, other=other, delta=delta)
        for use, other, delta in zip(uses, others, deltas, strict=True)
    ]
    return squared(sum(grads, jnp.zeros_like(leaf)))
