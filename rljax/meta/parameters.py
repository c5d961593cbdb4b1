"""Tuned floats of a config, and the raw numbers that a meta-gradient moves.

The raw numbers are free; a value is always between the bounds of its scale.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import networks
from rljax.config import Range, check_count, check_range, check_sizes, ranges
from rljax.contracts import TunedConfig
from rljax.types import Obs, ObsSpec

_EDGE = 1e-3  # of the scale: nearer to a bound hardly anything would move
_LOG_RANGE = Range(1e-5, 1.0, "log")  # of a field that declares none
_STARTS_SMALL = 0.1  # scale of a network's last layer: near the start everywhere
# Of a scale's raw numbers, in multiples of the tuning's learning rate.
_PACE = dataclasses.field(default=1.0, repr=False)


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Values between two bounds; the raw number goes through a sigmoid.

    Near a bound equal steps of the raw number multiply the distance to it.
    """

    low: float
    high: float
    pace: float = _PACE

    def __post_init__(self) -> None:
        _check_bounds(self)

    def at(self, position: jax.Array) -> jax.Array:
        """Value at a position from 0, the low bound, to 1."""
        return self.low + (self.high - self.low) * position

    def position(self, value: ArrayLike) -> jax.Array:
        """Undo `at`."""
        return (jnp.asarray(value) - self.low) / (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class LogHorizon:
    """Discounts between two bounds below 1, even in the log of 1 / (1 - discount).

    From 0.99 to 0.999 is as far as from 0.9 to 0.99.
    """

    low: float = 0.0
    high: float = 0.9999
    pace: float = _PACE

    def __post_init__(self) -> None:
        _check_bounds(self)
        if self.low < 0.0 or self.high >= 1.0:
            raise ValueError(f"{self}: bounds of a discount must be in [0, 1)")

    def at(self, position: jax.Array) -> jax.Array:
        """Value at a position from 0, the low bound, to 1."""
        low, high = (-jnp.log1p(-bound) for bound in (self.low, self.high))
        return -jnp.expm1(-(low + (high - low) * position))

    def position(self, value: ArrayLike) -> jax.Array:
        """Undo `at`."""
        low, high = (-jnp.log1p(-bound) for bound in (self.low, self.high))
        return (-jnp.log1p(-jnp.asarray(value)) - low) / (high - low)


@dataclasses.dataclass(frozen=True)
class Logarithmic:
    """Positive values between two bounds, even in their logarithm.

    A start below the low bound, such as 0, counts as the low bound.
    """

    low: float
    high: float
    pace: float = _PACE

    def __post_init__(self) -> None:
        _check_bounds(self)
        if self.low <= 0.0:
            raise ValueError(f"{self}: bounds must be above 0")

    def at(self, position: jax.Array) -> jax.Array:
        """Value at a position from 0, the low bound, to 1."""
        low, high = (jnp.log(bound) for bound in (self.low, self.high))
        return jnp.exp(low + (high - low) * position)

    def position(self, value: ArrayLike) -> jax.Array:
        """Undo `at`."""
        low, high = (jnp.log(bound) for bound in (self.low, self.high))
        return (jnp.log(jnp.maximum(jnp.asarray(value), self.low)) - low) / (high - low)


Scale = Bounded | LogHorizon | Logarithmic


@dataclasses.dataclass(frozen=True)
class StateDependent:
    """A value for every transition: a small network of the observation it leads to.

    For floats that the agent uses step by step: `gamma` and `lambda_` of agents that
    learn from fresh rollouts.
    """

    scale: Scale
    hidden_sizes: tuple[int, ...] = (16,)

    def __post_init__(self) -> None:
        check_sizes(self, "hidden_sizes")


@dataclasses.dataclass(frozen=True)
class Contextual:
    """A small network of the mean rewards of the newest rollouts.

    Luketina et al. (2022), https://arxiv.org/abs/2209.06159. They come in units of
    their root mean square since the start, through a hyperbolic tangent; no gradient
    passes through them.
    """

    scale: Scale
    length: int = 10  # rollouts
    hidden_sizes: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        check_count(self, "length")
        check_sizes(self, "hidden_sizes")


Parameter = Scale | StateDependent | Contextual
# The numbers behind a tuned value: []; of a network {"start": [], "network": params}
Raw = Any

SCALES = {"linear": Bounded, "log": Logarithmic, "horizon": LogHorizon}
KINDS = ("bounded", "log", "log_horizon", "state_dependent", "contextual")


def parse_parameter(text: str, config: TunedConfig) -> tuple[str, Parameter]:
    """Read what to tune from a command line: `NAME` or `NAME=KIND,LOW,HIGH`.

    Without bounds a field has the range that its config declares. Where there is none,
    a discount has the horizons 1 to 10,000; anything else lies between 0, or a
    hundredth of its start where 0 is not allowed, and 1, or ten times its start if that
    is above 1.

    Raises:
      ValueError: not of that form.

    Example:
      >>> from rljax import agents
      >>> parse_parameter("gamma=bounded,0.9,1", agents.get("a2c").Config())
      ('gamma', Bounded(low=0.9, high=1.0))
    """
    name, _, rest = text.partition("=")
    known = ranges(config).get(name)
    if not rest and known is not None:
        return name, of_range(known)
    default = "log_horizon" if name == "gamma" else "bounded"
    kind, *bounds = rest.split(",") if rest else [default]
    if kind not in KINDS or len(bounds) not in (0, 2):
        kinds = ", ".join(KINDS)
        raise ValueError(f"{text!r}: not NAME or NAME=KIND,LOW,HIGH, KIND of {kinds}")
    try:
        numbers = [float(bound) for bound in bounds]
    except ValueError as error:
        raise ValueError(f"{text!r}: LOW and HIGH must be numbers") from error
    span = known or _LOG_RANGE
    discount = name == "gamma" and not numbers and kind != "bounded"
    if kind == "log_horizon" or discount:
        low, high = numbers or (LogHorizon.low, LogHorizon.high)
        scale = LogHorizon(low=low, high=high, pace=span.pace)
    elif kind == "log":
        low, high = numbers or (span.low, span.high)
        scale = Logarithmic(low=low, high=high, pace=span.pace)
    else:
        low, high = numbers or _default_bounds(name, config)
        scale = Bounded(low=low, high=high, pace=span.pace)
    wrapped = {"state_dependent": StateDependent, "contextual": Contextual}
    return name, wrapped[kind](scale) if kind in wrapped else scale


def parse_parameters(texts: Sequence[str], config: TunedConfig) -> dict[str, Parameter]:
    """Read all that a command line tunes: `all`, and what `parse_parameter` reads.

    Raises:
      ValueError: not of that form, a field twice, or `all` of a config that declares no
        range.
    """
    found: dict[str, Parameter] = {}
    named: dict[str, Parameter] = {}
    for text in texts:
        if text == "all":
            found = declared(config)
            if not found:
                kind = type(config).__name__
                raise ValueError(f"all: no field of {kind} declares a range to tune in")
            continue
        name, parameter = parse_parameter(text, config)
        if name in named:
            raise ValueError(f"{text!r}: {name} is to be tuned twice")
        named[name] = parameter
    return found | named


def declared(config: TunedConfig) -> dict[str, Parameter]:
    """Everything that can be tuned in the range that the config declares for it.

    Fields of a range come by `rljax.config.discount`, `rate`, `cost` and `share`. One
    that is None is left alone.

    Example:
      >>> from rljax import agents
      >>> list(declared(agents.get("a2c").Config()))
      ['learning_rate', 'gamma', 'lambda_', 'entropy_cost']
    """
    return {
        name: of_range(known)
        for name, known in ranges(config).items()
        if getattr(config, name) is not None
    }


def of_range(known: Range) -> Scale:
    """The scale of a declared range."""
    return SCALES[known.scale](low=known.low, high=known.high, pace=known.pace)


def _default_bounds(name: str, config: TunedConfig) -> tuple[float, float]:
    start = getattr(config, name, None)
    if not isinstance(start, float):  # an error of its own, elsewhere
        return 0.0, 1.0
    try:
        dataclasses.replace(config, **{name: 0.0}).validate()
        low = 0.0
    except ValueError:
        low = 0.01 * start
    return low, 10.0 * start if start > 1.0 else 1.0


def scale(parameter: Parameter) -> Scale:
    """The scale on which the parameter's values lie."""
    if isinstance(parameter, Scale):
        return parameter
    return parameter.scale


def pace(parameter: Parameter) -> float:
    """Speed of its raw numbers, in multiples of the tuning's learning rate."""
    return scale(parameter).pace


def context_length(parameter: Parameter) -> int:
    """The number of rollouts whose rewards the parameter looks at."""
    return parameter.length if isinstance(parameter, Contextual) else 0


def init(
    parameter: Parameter, start: ArrayLike, obs_spec: ObsSpec, key: jax.Array
) -> Raw:
    """Raw numbers at which the value is `start`, or near `start` in every state.

    A start on a bound moves inside by a thousandth of the scale.
    """
    position = jnp.clip(scale(parameter).position(start), _EDGE, 1.0 - _EDGE)
    logit = jnp.log(position) - jnp.log1p(-position)
    if isinstance(parameter, Scale):
        return logit
    network = _network(parameter, obs_spec)
    params = network.init(key, network.body.obs.zeros(1))
    return {"start": logit, "network": params}


def position(
    parameter: Parameter, raw: Raw, obs: Obs, *, obs_spec: ObsSpec, context: jax.Array
) -> jax.Array:
    """The value's position on its scale: `[]`, or as many as observations.

    Args:
      parameter: to which the raw numbers belong.
      raw: as returned by `init`, or moved since.
      obs: `[..., *shape]`.
      obs_spec: of one observation.
      context: of the newest rollouts' rewards, from -1 to 1, the newest last.

    Returns:
      From 0 to 1.
    """
    if isinstance(parameter, Scale):
        return jax.nn.sigmoid(raw)
    if isinstance(parameter, Contextual):
        obs = context[len(context) - parameter.length :]
    out = _network(parameter, obs_spec).apply(raw["network"], obs)
    return jax.nn.sigmoid(raw["start"] + out)


def _network(
    parameter: StateDependent | Contextual, obs_spec: ObsSpec
) -> networks.Critic:
    if isinstance(parameter, Contextual):
        obs_spec = ObsSpec.array((parameter.length,))
    body = networks.Body(obs=obs_spec, hidden_sizes=parameter.hidden_sizes)
    return networks.Critic(body=body, scale=_STARTS_SMALL)


def _check_bounds(bounds: Scale) -> None:
    check_range(bounds, "low", "high")
    check_range(bounds, "pace", low=0.0, open_low=True)
    if not bounds.low < bounds.high:
        raise ValueError(f"{bounds}: low must be below high")
