"""Compare runs in one picture: `python scripts/plot.py runs/A runs/B`."""

from rljax.commands import run

if __name__ == "__main__":
    run("plot")
