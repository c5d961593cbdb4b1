"""The values of the varied fields: choices, ranges, and what is drawn from them."""

import contextlib
import dataclasses
import io
import itertools
import math
import typing
from typing import Any, NamedTuple

import numpy as np
import tyro

from rljax.config import unknown

Value = float | int | bool | str | tuple[Any, ...] | None
Row = tuple[Value, ...]  # of a configuration, a value for each varied field
SCALES = ("log", "uniform")
_CORNERS = 4096
_DIGITS = 6  # of a drawn number, so that a table's number can be typed again


class Choices(NamedTuple):
    """A field, and the values that it takes."""

    name: str
    values: tuple[Value, ...]


class Span(NamedTuple):
    """A float field, and the range that it is drawn from."""

    name: str
    scale: str  # one of SCALES: even in the logarithm, or in the number itself
    low: float
    high: float

    def draw(self, generator: np.random.Generator) -> float:
        """Draw a number of a few digits, `low` and `high` included."""
        if self.scale == "log":
            bounds = math.log(self.low), math.log(self.high)
            number = math.exp(generator.uniform(*bounds))
        else:
            number = generator.uniform(self.low, self.high)
        return min(max(float(f"{number:.{_DIGITS}g}"), self.low), self.high)


Space = list[Choices | Span]


def parse(vary: tuple[str, ...], config: Any) -> Space:
    """Read the words of `--vary`.

    Args:
      vary: `NAME=VALUE,VALUE`, or `NAME=log:LOW,HIGH` and `NAME=uniform:LOW,HIGH` for a
        float. The parts of a tuple have a plus sign between them: `64+64,256`.
      config: an agent's, whose fields are varied.

    Returns:
      The values of each field, in order.

    Raises:
      ValueError: names the word, and what is wrong with it.

    Example:
      >>> from rljax import agents
      >>> config = agents.get("ppo").Config()
      >>> choices, span = parse(("hidden_sizes=8,64+64", "gamma=uniform:0,1"), config)
      >>> choices.values, span.scale, span.high
      (((8,), (64, 64)), 'uniform', 1.0)
    """
    types = typing.get_type_hints(type(config))
    names = [field.name for field in dataclasses.fields(config)]
    if not vary:
        raise ValueError(f"--vary: name at least one of {', '.join(names)}")
    space: Space = []
    for word in vary:
        name, _, text = word.partition("=")
        if name not in names:
            raise ValueError(f"--vary {word}: {unknown('field', name, names)}")
        if any(name == other.name for other in space):
            raise ValueError(f"--vary {' '.join(vary)}: a name is there twice")
        scale, colon, bounds = text.partition(":")
        if colon and scale in SCALES:
            space.append(_span(word, name, scale, bounds, types[name]))
        else:
            space.append(_choices(word, name, text, types[name]))
    return space


def _span(word: str, name: str, scale: str, bounds: str, kind: Any) -> Span:
    """Read the range of a float."""
    if float not in (kind, *typing.get_args(kind)):
        raise ValueError(f"--vary {word}: {name} is no float, expected NAME=VALUE,...")
    try:
        low, high = map(float, bounds.split(","))
    except ValueError as error:
        raise ValueError(f"--vary {word}: expected NAME={scale}:LOW,HIGH") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"--vary {word}: LOW must be below HIGH, both finite")
    if scale == "log" and low <= 0:
        raise ValueError(f"--vary {word}: LOW must be above 0 on a log scale")
    return Span(name, scale, low, high)


def _choices(word: str, name: str, text: str, kind: Any) -> Choices:
    """Read the values of a field."""
    values = tuple(_value(word, part, kind) for part in text.split(","))
    if len(set(values)) < len(values):
        raise ValueError(f"--vary {word}: a value is there twice")
    return Choices(name, values)


def _value(word: str, text: str, kind: Any) -> Value:
    """Read a value as the command line reads the field's own option."""
    message = f"--vary {word}: {text!r}: expected {_described(kind)}"
    if not text:
        raise ValueError(message)
    if kind is float:  # tyro takes -1e-3 for an option
        try:
            return float(text)
        except ValueError as error:
            raise ValueError(message) from error
    is_tuple = typing.get_origin(kind) is tuple
    words = text.split("+") if is_tuple else [text]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(kind, args=words)
    except SystemExit as end:
        raise ValueError(message) from end


def _described(kind: Any) -> str:
    """Name a field's type, a tuple's as it is written in a word."""
    if typing.get_origin(kind) is tuple:
        return "values with + between them, such as 64+64"
    return getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)


def grid(space: Space) -> list[Row]:
    """List all combinations of choices.

    Raises:
      ValueError: there is a range among them.

    Example:
      >>> grid([Choices("a", (1, 2)), Choices("b", ("x",))])
      [(1, 'x'), (2, 'x')]
    """
    values = []
    for varied in space:
        if isinstance(varied, Span):
            raise ValueError(
                f"--vary {varied.name}={varied.scale}:...: a range needs --samples, "
                "the number of configurations to draw"
            )
        values.append(varied.values)
    return list(itertools.product(*values))


def corners(space: Space) -> list[Row]:
    """Combine the choices and the ends of the ranges, at most a few thousand times.

    Example:
      >>> corners([Choices("a", (1, 2)), Span("b", "log", 0.1, 1.0)])
      [(1, 0.1), (1, 1.0), (2, 0.1), (2, 1.0)]
    """
    values = [
        (varied.low, varied.high) if isinstance(varied, Span) else varied.values
        for varied in space
    ]
    return list(itertools.islice(itertools.product(*values), _CORNERS))


def draw(space: Space, samples: int, seed: int) -> list[Row]:
    """Draw configurations at random, each field by itself.

    Random search: Bergstra and Bengio (2012),
    https://jmlr.org/papers/v13/bergstra12a.html.

    Args:
      space: choices, equally likely, and ranges.
      samples: number of configurations.
      seed: of the draws; the first of many samples are those of few.

    Example:
      >>> rows = draw([Span("rate", "log", 1e-4, 1e-2)], samples=3, seed=0)
      >>> rows == draw([Span("rate", "log", 1e-4, 1e-2)], samples=4, seed=0)[:3]
      True
    """
    generator = np.random.default_rng(seed)
    return [
        tuple(
            varied.draw(generator)
            if isinstance(varied, Span)
            else varied.values[generator.integers(len(varied.values))]
            for varied in space
        )
        for _ in range(samples)
    ]


def written(value: Value) -> str:
    """Write a value as `--vary` takes it.

    Example:
      >>> written((64, 64)), written(0.001), written(True)
      ('64+64', '0.001', 'True')
    """
    if isinstance(value, tuple):
        return "+".join(map(written, value))
    return repr(value) if isinstance(value, float) else str(value)
