"""Measure priorities: `python scripts/gradient_variance.py --env CartPole-v1`."""

from rljax.commands import run

if __name__ == "__main__":
    run("gradient-variance")
