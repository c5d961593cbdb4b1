"""The command `rljax` as `python -m rljax`."""

from rljax.commands import main

if __name__ == "__main__":
    main(prog="python -m rljax")
