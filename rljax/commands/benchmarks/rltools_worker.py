"""Measures RLtools (github.com/rl-tools/rl-tools) on one thread, without evaluation.

RLtools is C++, which its Python package compiles for each configuration and keeps in a
temporary folder: only the first process compiles, later ones report the same seconds.
"""
# pyright: reportMissingImports=false

import hashlib
import os
import pathlib
import shutil
import sys
import time
from importlib import metadata

import rltools
from protocol import measure, print_result, read_job, result, versions

IMPORTED = time.time()
# Gymnasium's, save that PPO's reward counts the torque before it is clipped.
PENDULUM = """\
#include <rl_tools/rl/environments/pendulum/operations_cpu.h>
namespace pendulum = rl_tools::rl::environments::pendulum;
template <typename T, typename TI>
using ENVIRONMENT_FACTORY =
    rl_tools::rl::environments::Pendulum<pendulum::Specification<T, TI>>;
"""


def ppo(hyper):
    """Returns PPO's arguments; RLtools clips neither gradients nor values."""
    batch = hyper["num_envs"] * hyper["rollout_length"]
    return networks(hyper) | {
        "N_ENVIRONMENTS": hyper["num_envs"],
        "ON_POLICY_RUNNER_STEPS_PER_ENV": hyper["rollout_length"],
        "N_EPOCHS": hyper["num_epochs"],
        "BATCH_SIZE": batch // hyper["num_minibatches"],
        "GAMMA": hyper["gamma"],
        "LAMBDA": hyper["lambda_"],
        "EPSILON_CLIP": hyper["clip_epsilon"],
        "ACTION_ENTROPY_COEFFICIENT": hyper["entropy_cost"],
        "NORMALIZE_ADVANTAGE": hyper["normalize_advantages"],
        "INITIAL_ACTION_STD": 1.0,  # as rljax's
    }


def sac(hyper):
    """Returns SAC's arguments."""
    return off_policy(hyper) | {
        "N_WARMUP_STEPS": hyper["warmup_steps"],
        "ALPHA": 1.0,  # as rljax's at first
    }


def td3(hyper):
    """Returns TD3's arguments."""
    delay = hyper["policy_delay"]
    return off_policy(hyper) | {
        "N_WARMUP_STEPS": hyper["warmup_steps"],  # random; it learns from step 100 on
        "ACTOR_TRAINING_INTERVAL": delay,
        "ACTOR_TARGET_UPDATE_INTERVAL": delay,
        "CRITIC_TARGET_UPDATE_INTERVAL": delay,
        "TARGET_NEXT_ACTION_NOISE_STD": hyper["target_noise"],
        "TARGET_NEXT_ACTION_NOISE_CLIP": hyper["target_noise_clip"],
        "EXPLORATION_NOISE": hyper["noise_end"],
    }


def off_policy(hyper):
    """Returns the arguments that SAC and TD3 share."""
    if (hyper["num_envs"], hyper["num_updates"]) != (1, hyper["rollout_length"]):
        raise ValueError("RLtools updates once per step of one environment")
    return networks(hyper) | {
        "ACTOR_BATCH_SIZE": hyper["batch_size"],
        "CRITIC_BATCH_SIZE": hyper["batch_size"],
        "REPLAY_BUFFER_CAP": hyper["capacity"],
        "GAMMA": hyper["gamma"],
        "ACTOR_POLYAK": 1.0 - hyper["target_rate"],
        "CRITIC_POLYAK": 1.0 - hyper["target_rate"],
    }


def networks(hyper):
    """Returns the arguments of both networks and their optimisers."""
    size, *others = hyper["hidden_sizes"]
    if set(others) - {size}:
        raise ValueError(f"RLtools' layers have one size, not {hyper['hidden_sizes']}")
    shape = {
        "HIDDEN_DIM": size,
        "NUM_LAYERS": len(hyper["hidden_sizes"]) + 1,  # it counts the output's
        "ACTIVATION_FUNCTION": hyper["activation"].upper(),
    }
    both = {f"{net}_{k}": v for net in ("ACTOR", "CRITIC") for k, v in shape.items()}
    return both | {"OPTIMIZER_ALPHA": hyper["learning_rate"]}


def loop_steps(job):
    """Returns how often RLtools' loop steps, and environment steps of each time."""
    hyper = job["hyper"]
    size = hyper["num_envs"] * hyper["rollout_length"] if job["agent"] == "ppo" else 1
    return job["steps"] // size, size


ARGUMENTS = {"ppo": ppo, "sac": sac, "td3": td3}
COMPILERS = {"ppo": rltools.PPO, "sac": rltools.SAC, "td3": rltools.TD3}


def check_compiler():
    """Exits with one line where RLtools finds no compiler."""
    named = "RL_TOOLS_COMPILER" in os.environ
    if not named and not any(map(shutil.which, ("g++", "clang++"))):
        raise SystemExit("no C++ compiler: RLtools needs g++ or clang++")


def packages():
    """Returns the distributions that are measured: MKL too where it is installed."""
    try:
        versions("mkl", "mkl-include")
    except metadata.PackageNotFoundError:
        return ("rltools",)
    return ("rltools", "mkl")


def compiled(job):
    """Compiles, or loads what an earlier process compiled.

    Returns: the module, seconds that its compilation took, and seconds spent now.
    """
    if job["env"] != "Pendulum-v1":
        raise ValueError(f"{job['env']} is not among RLtools' environments here")
    arguments = ARGUMENTS[job["agent"]](job["hyper"])
    arguments["STEP_LIMIT"] = loop_steps(job)[0]
    parts = (arguments, PENDULUM, versions(*packages()), sys.prefix)
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    folder = pathlib.Path(rltools.CACHE_PATH) / "rljax" / f"{job['agent']}_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment.h").write_text(PENDULUM)
    begin = time.perf_counter()
    module = COMPILERS[job["agent"]](
        {"path": str(folder), "action_dim": 1, "observation_dim": 3},
        enable_evaluation=False,
        enable_blas="mkl" in packages(),  # no other, which rows could not name
        interface_name=name,
        **arguments,
    )
    spent = time.perf_counter() - begin
    kept = folder / "compile_s"
    if not kept.exists():
        kept.write_text(str(spent))
    return module, float(kept.read_text()), spent


def main():
    """Compiles the training where needed, then times it."""
    check_compiler()
    os.environ["MKL_NUM_THREADS"] = "1"  # RLtools' default, which shells override
    job = read_job()
    module, compile_s, spent = compiled(job)
    times, size = loop_steps(job)

    def run():
        state = module.State(job["seed"])
        for _ in range(times):
            state.step()
        return times * size

    ready = time.time() + compile_s - spent  # a cold start compiles
    seconds, steps = measure(run)
    values = result(
        job,
        imported=IMPORTED,
        compile_s=compile_s,
        ready=ready,
        seconds=seconds,
        steps=steps,
        device="cpu",
        packages=packages(),
    )
    if "mkl" not in packages():
        values["note"] = "; ".join(filter(None, (values["note"], "without MKL")))
    print_result(values)


if __name__ == "__main__":
    main()
