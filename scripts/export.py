"""Export a trained policy: `python scripts/export.py runs/NAME --out policy`."""

from rljax.commands import run

if __name__ == "__main__":
    run("export")
