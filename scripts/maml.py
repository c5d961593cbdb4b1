"""Learn to adapt to new tasks: `python scripts/maml.py --tasks tabular`."""

from rljax.commands import run

if __name__ == "__main__":
    run("maml")
