"""Compare methods over seeds and tasks: `python scripts/compare.py runs/A runs/B`."""

from rljax.commands import run

if __name__ == "__main__":
    run("compare")
