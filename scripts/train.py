"""Train an agent: `python scripts/train.py ppo --env CartPole-v1 --seeds 4`."""

from rljax.commands import run

if __name__ == "__main__":
    run("train")
