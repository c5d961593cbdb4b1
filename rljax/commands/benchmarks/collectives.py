"""Exchanges between devices, read from the text of a compiled program."""

import math
import re
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_EXCHANGE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)"
    r"(-start)?\("
)
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|branch_computations)=\{?([^,}]+)")
_TIMES = re.compile(r'"known_trip_count":\{"n":"([0-9]+)"')


class Exchanged(NamedTuple):
    """Of one device, in one execution of a program."""

    exchanges: int
    kilobytes: float  # of their results


def exchanged(text: str) -> Exchanged:
    """Count the exchanges of a program, those of a loop as often as it runs.

    Args:
      text: `compiled.as_text()`. A loop whose length it does not tell counts once.

    Example:
      >>> exchanged('''
      ... %body (x: f32[4]) -> f32[4] {
      ...   %sum = f32[4]{0} all-reduce(%x), to_apply=%add
      ... }
      ... ENTRY %main (x: f32[4]) -> f32[4] {
      ...   %y = f32[4] while(%x), body=%body, {"known_trip_count":{"n":"5"}}
      ... }''')
      Exchanged(exchanges=5, kilobytes=0.08)
    """
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    entry = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            lines = computations[found[2]] = []
            entry = found[2] if found[1] else entry
        lines.append(line)

    def count(name: str) -> tuple[int, int]:
        exchanges = size = 0
        for line in computations.get(name, []):
            if found := _EXCHANGE.search(line):
                exchanges, size = exchanges + 1, size + _bytes(found[1])
                continue
            times = int(found[1]) if (found := _TIMES.search(line)) else 1
            for called in _CALLED.findall(line):
                inner = count(called.strip().removeprefix("%"))
                exchanges += times * inner[0]
                size += times * inner[1]
        return exchanges, size

    exchanges, size = count(entry)
    return Exchanged(exchanges=exchanges, kilobytes=size / 1e3)


def _bytes(shapes: str) -> int:
    """Bytes of arrays, such as `(f32[2,3]{1,0}, s32[])`."""
    return sum(
        _BYTES.get(dtype, 4) * math.prod(map(int, filter(None, shape.split(","))))
        for dtype, shape in _ARRAY.findall(shapes)
    )
