"""Processes of one program, for tests: started together, ended with the test."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECONDS = 120  # after which a process is killed


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def by_address(index, port):
    """The variables that tell a process of two its place."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }


def by_slurm(index, port):
    """What Slurm sets for a process of two on this machine."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }


@contextlib.contextmanager
def started(*argv, cwd, place=by_address, indices=(0, 1), **variables):
    """Start a Python program in several processes; kill what is left of them."""
    port, processes = free_port(), []
    try:
        for index in indices:
            env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
            env |= (place(index, port) if place else {}) | variables
            processes.append(
                subprocess.Popen(
                    [
                        "timeout",
                        "-k",
                        "1",
                        str(SECONDS),
                        sys.executable,
                        *map(str, argv),
                    ],
                    cwd=cwd,
                    env=env,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                send(process, signal.SIGKILL)
            process.communicate()


def send(process, number):
    """Send a signal to the program that `timeout` has started."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for pid in children.read_text().split():
        os.kill(int(pid), number)


def ended(processes):
    """Exit code, stdout without gloo's, and stderr of each."""
    results = []
    for process in processes:
        out, err = process.communicate(timeout=SECONDS)
        lines = [x for x in out.splitlines() if not x.startswith("[Gloo]")]
        results.append((process.returncode, lines, err))
    return results
