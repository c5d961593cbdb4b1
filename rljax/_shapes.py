"""Arguments of a function, declared in one line: `@checked("q_t[T,A] a_t[T]:int")`.

Declared arguments are checked and promoted at every call, and their shapes are written
into the docstring. The checks read shapes and dtypes only: a jitted function pays for
them once, when traced.
"""

import functools
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeVar, cast, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Function = TypeVar("Function", bound=Callable[..., object])
Shape = tuple[int, ...]

_WORD = re.compile(r"(\w+)\[([^]]*)\](\|\[\])?(?::(float|scalar|int|bool))?")


class _Aval(Protocol):
    """Shape and dtype of an array, as jax knows them while tracing."""

    shape: Shape
    ndim: int
    dtype: np.dtype
    weak_type: bool  # of a Python number: other arrays decide the dtype

    def str_short(self) -> str:
        """Dtype and shape, `float32[3]`."""
        ...


class Declared(NamedTuple):
    """One argument: a word of a declaration."""

    word: str
    name: str
    axes: tuple[str, ...]
    or_scalar: bool
    type: str  # "", "float", "scalar", "int" or "bool"

    @property
    def is_float(self) -> bool:
        """Whether it is promoted with the others."""
        return self.type not in ("int", "bool")

    @property
    def text(self) -> str:
        """Shape and type, as docstrings tell them."""
        shape = f"`[{', '.join(self.axes)}]`" + " or `[]`" * self.or_scalar
        return shape if self.is_float else f"{shape} {self.type}"


def checked(
    spec: str = "", glossary: Mapping[str, str] | None = None
) -> Callable[[Function], Function]:
    """Declares the arguments of a function, which then has them checked and promoted.

    An argument that is None by default may be None. An argument that is annotated as a
    `Literal` must be one of its values. The docstring gets the shapes, the entries of
    the glossary for arguments that it leaves out, and the errors.

    Args:
      spec: one word per array. `q_t[T,A]`: a name means the same size everywhere, and
        `[K-1]` one less; `v_t[...]`: any axes, the same everywhere, and after them
        others, `q_t[...,A]`; `alpha[*]`: any shape; `lambda_[T]|[]`: or a
        hyperparameter, `v_t[T]|[]:float`: or one float; `eps[]:scalar`: a
        hyperparameter; `a_t[T]:int` and `mask[T]:bool`: another type.
      glossary: arguments and their meanings.

    Returns:
      A decorator. It keeps the signature; `function.declared` is the spec.

    Raises:
      ValueError: a word that is no declaration, or of no parameter. When called: a
        value that is none of a `Literal`'s.
      AssertionError: when called, shapes or dtypes: first the argument that is wrong,
        then all of them.
      TypeError: when called, naming an argument that is no array.

    Example:
      >>> @checked("x[T] scale[]:scalar")
      ... def scaled(x, scale=1.0):
      ...     return scale * x
      >>> scaled(jnp.array([1.0, 2.0]), scale=2)
      Array([2., 4.], dtype=float32)
      >>> scaled(jnp.array(1.0))
      Traceback (most recent call last):
      AssertionError: x: expected the shape [T]; expected x[T] ..., got x float32[], ...
    """
    declared = _parse(spec)

    def decorate(f: Function) -> Function:
        signature = inspect.signature(f)
        parameters = signature.parameters
        if unknown := [x.word for x in declared if x.name not in parameters]:
            raise ValueError(f"{f.__name__} has no parameter for {unknown}")
        optional = {name for name, x in parameters.items() if x.default is None}
        choices = {
            name: get_args(x.annotation)
            for name, x in parameters.items()
            if get_origin(x.annotation) is Literal
        }

        @functools.wraps(f)
        def wrapped(*args: object, **kwargs: object) -> object:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = bound.arguments
            for name, options in choices.items():
                if values[name] not in options:
                    raise ValueError(
                        f"{name}={values[name]!r}, expected one of {options}"
                    )
            given = [
                x
                for x in declared
                if not (x.name in optional and values[x.name] is None)
            ]
            names = [x.name for x in given]
            arrays = _promote(given, [values[name] for name in names])
            values.update(zip(names, arrays, strict=True))
            return f(*bound.args, **bound.kwargs)

        if doc := inspect.getdoc(f):
            meanings = _meanings(doc, parameters, glossary or {}, declared)
            wrapped.__doc__ = _documented(doc, meanings, declared, list(choices))
        vars(wrapped)["declared"] = spec
        return cast(Function, wrapped)

    return decorate


def promoted(arrays: Mapping[str, ArrayLike]) -> list[jax.Array]:
    """Arrays of the declared shapes, the floats of the widest dtype among them.

    Arrays that have this dtype, or are weakly typed (Python floats), are returned as
    they came. Integers and bools count as floats only where they are numbers: Python's
    or numpy's, or `[]` arrays of a hyperparameter.

    Args:
      arrays: each by its declaration, a word as in `checked`.

    Raises:
      AssertionError: first the array that is wrong, then all of them.
      TypeError: naming an argument that is no array.
    """
    return _promote(_parse(" ".join(arrays)), list(arrays.values()))


@functools.cache
def _parse(spec: str) -> tuple[Declared, ...]:
    declared = []
    for word in spec.split():
        match = _WORD.fullmatch(word)
        if match is None:
            raise ValueError(f"{word!r} declares no argument, as `q_t[T,A]` does")
        name, axes, or_scalar, kind = match.groups()
        declared.append(
            Declared(
                word=word,
                name=name,
                axes=tuple(axes.split(",")) if axes else (),
                or_scalar=bool(or_scalar),
                type=kind or "",
            )
        )
    return tuple(declared)


def _promote(declared: Sequence[Declared], arrays: list[ArrayLike]) -> list[jax.Array]:
    avals = [_aval(x.name, array) for x, array in zip(declared, arrays, strict=True)]

    def refusal(wrong: Declared, expected: str) -> AssertionError:
        spec = " ".join(x.word for x in declared)
        given = ", ".join(
            f"{x.name} {aval.str_short()}"
            for x, aval in zip(declared, avals, strict=True)
        )
        return AssertionError(
            f"{wrong.name}: expected {expected}; expected {spec}, got {given}"
        )

    sizes = _Sizes()
    for x, aval in zip(declared, avals, strict=True):
        if not (x.or_scalar and aval.ndim == 0):
            shape = sizes.shape(x.axes, aval.shape)
            if aval.shape != shape:
                raise refusal(x, f"the shape [{','.join(map(str, shape))}]")
    for x, array, aval in zip(declared, arrays, avals, strict=True):
        if not _has_type(x, array, aval):
            kind = "floats (see `astype`)" if x.is_float else f"{x.type}s"
            raise refusal(x, kind)
    floating = [x.is_float for x in declared]
    dtype = jnp.result_type(float, *itertools.compress(arrays, floating))
    return [
        _cast(array, aval, dtype) if is_float else cast(jax.Array, array)
        for array, aval, is_float in zip(arrays, avals, floating, strict=True)
    ]


class _Sizes:
    """Sizes that names of axes got from the arrays that came first."""

    def __init__(self) -> None:
        self.named: dict[str, int] = {}
        self.leading: Shape | None = None  # of "..."

    def shape(self, axes: tuple[str, ...], given: Shape) -> tuple[int | str, ...]:
        """Sizes of the axes; a name that has none yet gets its size here."""
        if axes == ("*",):
            return given
        if axes[:1] != ("...",):
            return self._last(axes, given)
        first = max(len(given) - len(axes) + 1, 0)
        if self.leading is None:
            self.leading = given[:first]
        return (*self.leading, *self._last(axes[1:], given[first:]))

    def _last(self, axes: tuple[str, ...], given: Shape) -> tuple[int | str, ...]:
        shape: list[int | str] = []
        for axis, size in itertools.zip_longest(axes, given[: len(axes)]):
            name, less = axis.removesuffix("-1"), int(axis.endswith("-1"))
            if size is not None:
                self.named.setdefault(name, size + less)
            shape.append(self.named[name] - less if name in self.named else axis)
        return tuple(shape)


def _has_type(declared: Declared, array: ArrayLike, aval: _Aval) -> bool:
    if declared.type == "int":
        return jnp.issubdtype(aval.dtype, jnp.integer)
    if declared.type == "bool":
        return jnp.issubdtype(aval.dtype, jnp.bool_)
    if jnp.issubdtype(aval.dtype, jnp.floating):
        return True
    real = jnp.issubdtype(aval.dtype, jnp.integer) or aval.dtype == jnp.bool_
    hyperparameter = declared.type == "scalar" or (
        declared.or_scalar and declared.type != "float"
    )
    number = aval.weak_type or isinstance(array, (bool, np.generic))
    return real and aval.ndim == 0 and (hyperparameter or number)


def _cast(array: ArrayLike, aval: _Aval, dtype: jax.typing.DTypeLike) -> jax.Array:
    weak = aval.weak_type and jnp.issubdtype(aval.dtype, jnp.floating)
    same = weak or aval.dtype == dtype
    return cast(jax.Array, array) if same else jnp.asarray(array, dtype)


def _aval(name: str, array: ArrayLike) -> _Aval:
    """Shape and dtype of an argument."""
    try:
        return jax.typeof(array)
    except TypeError as error:
        raise TypeError(f"{name}: expected an array, got {array!r}") from error


# Docstrings.

_SECTIONS = ("Args", "Returns", "Raises", "Example", "References", "Differs from")


def entries(section: str) -> dict[str, str]:
    """The entries of a docstring's section, by name."""
    found = re.findall(r"^  ([\w, ]+): (.*(?:\n    .*)*)", section, re.M)
    return {
        name: " ".join(text.split())
        for names, text in found
        for name in names.split(", ")
    }


def _meanings(
    doc: str,
    parameters: Iterable[str],
    glossary: Mapping[str, str],
    declared: Iterable[Declared],
) -> dict[str, str]:
    """Shape of each parameter, then its meaning, of the docstring or the glossary."""
    shapes = {x.name: x.text for x in declared}
    own = entries(_split(doc).get("Args", ""))
    meanings = {
        name: [shapes.get(name), own.get(name, glossary.get(name))]
        for name in parameters
    }
    return {name: " ".join(filter(None, parts)) for name, parts in meanings.items()}


def _split(doc: str) -> dict[str, str]:
    """The sections of a docstring by name; the text before them has the name ""."""
    titles = "|".join(_SECTIONS)
    first, *rest = re.split(rf"^({titles}):\n", doc, flags=re.M)
    return {"": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


def _documented(
    doc: str,
    meanings: Mapping[str, str],
    declared: Sequence[Declared],
    choices: Sequence[str],
) -> str:
    """The docstring with all arguments and errors."""
    sections = _split(doc)
    errors = entries(sections.get("Raises", ""))
    if choices:
        unknown = f"unknown {' or '.join(f'`{name}`' for name in choices)}"
        own = errors.get("ValueError")
        errors["ValueError"] = f"{unknown}; {own}" if own else f"{unknown}."
    if declared:
        errors.setdefault("AssertionError", "shape or dtype, at trace time.")
    sections["Args"] = _listed(meanings)
    sections["Raises"] = _listed(errors)
    titled = [
        f"{title}:\n{sections[title].rstrip()}"
        for title in _SECTIONS
        if sections.get(title)
    ]
    return "\n\n".join([sections[""].rstrip(), *titled])


def _listed(meanings: Mapping[str, str]) -> str:
    lines = [f"{name}: {text}" for name, text in meanings.items()]
    return "\n".join(
        textwrap.fill(
            # A shape stays on one line.
            re.sub(r"`\[.*?\]`", lambda shape: shape[0].replace(", ", ",\0"), line),
            width=84,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        ).replace("\0", " ")
        for line in lines
    )
