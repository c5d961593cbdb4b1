"""Meta-train an update rule: `python scripts/meta_train.py --name lpg`."""

from rljax.commands import run

if __name__ == "__main__":
    run("meta-train")
