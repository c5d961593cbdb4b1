"""Measure rljax: `python scripts/benchmark.py --suite speed`."""

from rljax.commands import run

if __name__ == "__main__":
    run("benchmark")
