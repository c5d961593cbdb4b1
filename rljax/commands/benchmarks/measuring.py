"""Comparisons of jitted functions by workers: time, temporary memory, exchanges.

Both are timed in one process, in turns, and each call is waited for, so that no two
overlap; on an accelerator that counts the launch of a call too.
"""

import statistics
from collections.abc import Callable
from typing import Any

import jax
from collectives import exchanged
from protocol import BYTES, EXCHANGES, WITH_RESULTS, alternate, versions

Call = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its arguments


def compare(job: dict[str, Any], find: Callable[[str], Call]) -> dict[str, Any]:
    """Makes all comparisons of a job.

    Args:
      job: a `Work` of ./autodiff.py, ./meta.py or ./scale.py.
      find: gives the function of that name, and what it is called with.
    """
    others = {"ms": milliseconds, EXCHANGES: exchanges, BYTES: exchanges}
    measure = others.get(job["unit"], megabytes)
    found = [
        measure(job, find(pair["what"]), find(pair["against"]))
        for pair in job["comparisons"]
    ]
    device = jax.devices()[0]
    return {
        "measurements": found,
        "versions": versions("rljax", "flax", "jax", "jaxlib"),
        "device": "cpu" if device.platform == "cpu" else device.device_kind,
    }


def milliseconds(job: dict[str, Any], what: Call, against: Call) -> dict[str, float]:
    """Returns how long a call takes, and the ratio: the median over the rounds."""

    def jitted(call: Call) -> Callable[[], Any]:
        function = jax.jit(call[0])
        return lambda: jax.block_until_ready(function(*call[1]))

    pairs = alternate(jitted(what), jitted(against), job["rounds"], job["sample_s"])
    return {
        "ratio": statistics.median(a / b for a, b in pairs),
        "what_value": 1e3 * statistics.median(a for a, _ in pairs),
        "against_value": 1e3 * statistics.median(b for _, b in pairs),
    }


def megabytes(job: dict[str, Any], what: Call, against: Call) -> dict[str, float]:
    """Returns the temporary memory of both, with or without that of their results."""

    def memory(call: Call) -> float:
        analysis: Any = jax.jit(call[0]).lower(*call[1]).compile().memory_analysis()
        results = analysis.output_size_in_bytes if job["unit"] == WITH_RESULTS else 0
        return (analysis.temp_size_in_bytes + results) / 1e6

    a, b = memory(what), memory(against)
    return {"ratio": a / b, "what_value": a, "against_value": b}


def exchanges(job: dict[str, Any], what: Call, against: Call) -> dict[str, float]:
    """Returns how often devices exchange in an iteration, or how many kilobytes."""

    def of_iteration(call: Call) -> float:
        text = jax.jit(call[0]).lower(*call[1]).compile().as_text() or ""
        found = exchanged(text)
        number = found.kilobytes if job["unit"] == BYTES else found.exchanges
        return number / job["iterations"]

    a, b = of_iteration(what), of_iteration(against)
    return {"ratio": a / b, "what_value": a, "against_value": b}
