"""List an environment's faults: `python scripts/check_env.py CartPole-v1`."""

from rljax.commands import run

if __name__ == "__main__":
    run("check-env")
