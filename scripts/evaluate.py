"""Evaluate a trained run: `python scripts/evaluate.py runs/NAME --episodes 128`."""

from rljax.commands import run

if __name__ == "__main__":
    run("evaluate")
