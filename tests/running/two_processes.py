"""One of two processes that try out `rljax.running.hosts` together.

Usage: python tests/running/two_processes.py FOLDER

Run by `test_hosts.py`. Prints a line of JSON with the results of this process.
"""

import errno
import functools
import json
import os
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rljax.running import checkpoint, hosts, sharding


def error_of(function):
    """The kind and text of what a function raises, or its result."""
    try:
        return ["returned", function()]
    except BaseException as error:
        return [type(error).__name__, str(error)]


def raising(error):
    def function():
        raise error

    return function


def spread(rows):
    """State of `rows` runs, made in both processes."""
    keys = jax.vmap(jax.random.key)(np.arange(rows, dtype=np.uint32))

    def state(key):
        return {"key": key, "x": jax.random.normal(key, (3,)), "step": jnp.int32(7)}

    return sharding.map_runs(state)(keys)


def data(state):
    state = state | {"key": jax.random.key_data(state["key"])}
    return {name: x.tolist() for name, x in hosts.to_host(state).items()}


def agreeing():
    long = f"process {jax.process_index()}: " + 300 * "é"
    return {
        "agree": hosts.agree(
            {"index": jax.process_index(), "none": None, "list": [0.5, "a"]}
        ),
        "long": hosts.agree(long),
        "greatest": hosts.greatest(jax.process_index(), 5 - jax.process_index()),
        "any_of": [hosts.any_of(jax.process_index() == 1), hosts.any_of(False)],
    }


def errors():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here.csv")
    broken = (
        raising(ValueError("only in process 1"))
        if jax.process_index()
        else lambda: "fine"
    )
    return {
        "on_primary": hosts.on_primary(lambda: f"from {jax.process_index()}"),
        "os": error_of(lambda: hosts.on_primary(raising(full))),
        "value": error_of(lambda: hosts.on_primary(raising(ValueError("bad")))),
        "exit": error_of(lambda: hosts.on_primary(raising(SystemExit(143)))),
        "bug": error_of(lambda: hosts.on_primary(raising(TypeError("bug")))),
        "on_all": error_of(lambda: hosts.on_all(broken)),
        "after": hosts.on_all(lambda: "fine"),
    }


def arrays():
    everywhere = NamedSharding(jax.sharding.Mesh(jax.devices(), "x"), PartitionSpec())
    tree = {
        "whole": jnp.arange(2),
        "everywhere": jax.device_put(np.arange(2), everywhere),
        "numpy": np.arange(2),
    }
    runs = {
        f"runs {n}": sharding.map_runs(lambda x: 2 * x)(np.arange(n)) for n in (1, 3, 4)
    }
    return {name: x.tolist() for name, x in hosts.to_host(tree | runs).items()}


def checkpoints(folder):
    state = spread(4)
    checkpoint.save(folder, 7, state)
    found = {"latest": checkpoint.latest(folder)}
    same = checkpoint.restore(folder, state)
    found["sharded"] = data(same) == data(state)
    found["shardings"] = jax.tree.map(lambda x: x.sharding, same) == jax.tree.map(
        lambda x: x.sharding, state
    )
    whole = checkpoint.restore(folder, jax.eval_shape(lambda: spread(4)))
    found["whole"] = data(whole) == data(state)
    hosts.on_primary(lambda: damaged(folder / "8"))
    found["damaged"] = error_of(lambda: checkpoint.restore(folder, state))
    found["exists"] = error_of(lambda: checkpoint.save(folder, 8, state))
    read = checkpoint._read
    if jax.process_index():
        checkpoint._steps = lambda folder: []  # a file system that is late
        no_disk = raising(checkpoint.CheckpointError("no disk"))
        checkpoint._read = lambda path: no_disk()
    found["late"] = checkpoint.latest(folder)
    found["unread"] = error_of(lambda: checkpoint.restore(folder, state, step=7))
    checkpoint._read = read
    return found


def damaged(step):
    step.mkdir()
    (step / "manifest.json").write_text("{}")


def claims(folder):
    from rljax.commands import train  # gymnax's import starts jax

    def claim(options):
        with train.run_folder(run, options) as path:
            hosts.on_primary(lambda: (path / "config.json").write_text("{}"))
            raise RuntimeError(path.name)

    run = types.SimpleNamespace(agent="ppo", env="CartPole-v1")
    found = {}
    for name in ("busy", "free", "file/x"):
        options = types.SimpleNamespace(out=folder, name=name, resume=False)
        found[name] = error_of(functools.partial(claim, options))
    return found


def main(folder):
    hosts.initialize(asked=True)
    cores = hosts.cores()  # before jax starts
    sharding.set_cpu_devices(1)
    with hosts.session():
        print("one line of process 0")
        found = {"cores": cores} | agreeing() | errors() | arrays()
        found |= {"checkpoints": checkpoints(folder / "checkpoints")}
        found |= {"claims": claims(folder)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
