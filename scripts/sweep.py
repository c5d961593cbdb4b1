"""Sweep hyperparameters: `python scripts/sweep.py ppo --vary gamma=0.9,0.99`."""

from rljax.commands import run

if __name__ == "__main__":
    run("sweep")
