"""The works of the suites of training, and of replay on its own."""

import dataclasses
from typing import Any

RLJAX, RLTOOLS = "rljax", "rltools"

PPO = {
    "rollout_length": 128,
    "num_epochs": 4,
    "num_minibatches": 4,
    "learning_rate": 2.5e-4,
    "gamma": 0.99,
    "lambda_": 0.95,
    "clip_epsilon": 0.2,
    "entropy_cost": 0.01,
    "value_cost": 0.5,
    "max_grad_norm": 0.5,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
    "anneal": False,
    "clip_value": True,
    "normalize_advantages": True,
}
UNCLIPPED = {"clip_value": False, "max_grad_norm": 1e6}  # as RLtools' PPO
DQN = {  # one update per iteration of 10 environment steps
    "num_envs": 10,
    "rollout_length": 1,
    "batch_size": 128,
    "n_step": 1,
    "warmup_steps": 1000,
    "target_period": 50,  # gradient steps
    "double": True,  # of rljax and rejax; Stable-Baselines3 has no such thing
    "epsilon_start": 1.0,
    "epsilon_end": 0.05,
    "exploration_fraction": 0.5,
    "learning_rate": 2.5e-4,
    "gamma": 0.99,
    "max_grad_norm": 10.0,
    "hidden_sizes": (64, 64),
    "activation": "relu",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """One thing to do, the same for every library."""

    name: str
    text: str
    agent: str  # or "replay": a buffer without an agent
    steps: int  # of the environment, per seed; a multiple of one rollout
    hyper: dict[str, Any]  # rljax's names
    seeds: int = 1
    peers: tuple[str, ...] = ("rejax",)
    short: dict[str, int] = dataclasses.field(default_factory=dict)  # fewer steps for
    env: str = "CartPole-v1"
    # rljax against itself with other hyperparameters, by a name for each
    variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    warm: bool = False  # start the clock after the warm-up
    rates: bool = False  # a learning rate for each run, from a tenth to ten times

    def __str__(self) -> str:
        """The line of --list."""
        names = ", ".join((RLJAX, *self.peers, *self.variants))
        return f"{self.name:20} {self.text} ({names})"


SPEED = (
    Work(
        "ppo-4",
        "ppo, 4 envs, 500k steps; its cold start is the suite's cold-start figure",
        "ppo",
        977 * 4 * 128,
        PPO | {"num_envs": 4},
        peers=("rejax", "sb3"),
        short={"sb3": 10 * 4 * 128},
    ),
    Work(
        "ppo-64",
        "ppo, 64 envs, 2M steps",
        "ppo",
        245 * 64 * 128,
        PPO | {"num_envs": 64},
    ),
    Work(
        "ppo-4x16",
        "ppo, 4 envs, 16 seeds at once, 100k steps each",
        "ppo",
        196 * 4 * 128,
        PPO | {"num_envs": 4},
        seeds=16,
    ),
    Work(
        "dqn-10k",
        "dqn, 10 envs, batch 128, buffer of 10k, 100k steps",
        "dqn",
        100_000,
        DQN | {"capacity": 10_000},
        peers=("rejax", "sb3"),
        short={"sb3": 4_000},
    ),
    Work(
        "dqn-100k",
        "the same with a buffer of 100k (rejax: 20k steps, it is slow there)",
        "dqn",
        100_000,
        DQN | {"capacity": 100_000, "warmup_steps": 200},
        short={"rejax": 20_000},
    ),
    Work(
        "ppo-pong",
        "ppo on Pong-misc, images of 30 x 40 x 3, 16 envs, a convolution, 20k steps",
        "ppo",
        10 * 16 * 128,
        PPO | {"num_envs": 16, "activation": "relu", "hidden_sizes": (128,)},
        peers=(),
        env="Pong-misc",
    ),
    *(
        Work(
            f"ppo-pendulum-{num_envs}",
            f"ppo on Pendulum, {num_envs} envs, {steps}",
            "ppo",
            rollouts * num_envs * 128,
            PPO | UNCLIPPED | {"num_envs": num_envs},
            peers=(RLTOOLS,),
            env="Pendulum-v1",
        )
        for num_envs, rollouts, steps in ((4, 977, "500k steps"), (64, 245, "2M steps"))
    ),
)


FULL_DQN = DQN | {  # the buffer is full before the clock starts
    "capacity": 100_000,
    "warmup_steps": 100_000,
}
PQN = {
    "num_envs": 16,
    "rollout_length": 128,
    "num_epochs": 5,
    "num_minibatches": 16,
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "lambda_": 0.9,
    "max_grad_norm": 10.0,
    "epsilon_start": 1.0,
    "epsilon_end": 0.05,
    "exploration_fraction": 0.5,
    "hidden_sizes": (64, 64),
    "activation": "relu",
    "anneal": False,
}
SAC = {  # one update per step
    "num_envs": 1,
    "rollout_length": 1,
    "num_updates": 1,
    "batch_size": 256,
    "capacity": 20_000,
    "warmup_steps": 500,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "target_rate": 0.005,
    "hidden_sizes": (256, 256),
    "activation": "relu",
    "n_step": 1,
}
SMALL = {"batch_size": 128, "hidden_sizes": (64, 64)}
TD3 = SAC | {  # the same for the critics
    "rollout_length": 2,
    "num_updates": 2,
    "policy_delay": 2,
    "warmup_steps": 128,  # one batch; RLtools learns from step 100 on, always
    "target_noise": 0.2,
    "target_noise_clip": 0.5,
    "noise_start": 0.1,  # RLtools' does not fall
    "noise_end": 0.1,
}
REPLAY = {"num_envs": 10, "batch_size": 128, "priority": "td_error"}

TD = (
    Work(
        "dqn",
        "dqn, 10 envs, batch 128, buffer of 100k",
        "dqn",
        100_000,
        DQN | {"capacity": 100_000, "warmup_steps": 200},
        peers=("rejax", "sb3"),
        short={"rejax": 20_000, "sb3": 4_000},
    ),
    Work(
        "pqn",
        "pqn, 16 envs, rollouts of 128, 5 epochs of 16 minibatches",
        "pqn",
        245 * 16 * 128,
        PQN,
    ),
    Work(
        "sac",
        "sac on Pendulum, 256-256, batch 256, one update per step",
        "sac",
        10_000,
        SAC,
        peers=("rejax", "sb3", RLTOOLS),
        short={"rejax": 5_000, "sb3": 2_000},
        env="Pendulum-v1",
    ),
    Work(
        "sac-64",
        "sac on Pendulum, 64-64, batch 128, one update per step",
        "sac",
        10_000,
        SAC | SMALL,
        peers=(RLTOOLS,),
        env="Pendulum-v1",
    ),
    Work(
        "td3-64",
        "td3 on Pendulum, 64-64, batch 128, one update per step",
        "td3",
        10_000,
        TD3 | SMALL,
        peers=(RLTOOLS,),
        env="Pendulum-v1",
    ),
    Work(
        "priorities",
        "dqn, a full buffer of 100k, uniform (rljax) or with priorities",
        "dqn",
        100_000 + 100_000,
        FULL_DQN,
        peers=(),
        variants={
            "td_error": {"priority": "td_error"},
            "grad_norm": {"priority": "grad_norm"},
        },
        warm=True,
    ),
    Work(
        "capacity",
        "dqn, td_error priorities, a full buffer of 10k (rljax) or of 1M",
        "dqn",
        1_000_000 + 100_000,
        FULL_DQN
        | {"capacity": 10_000, "warmup_steps": 1_000_000, "priority": "td_error"},
        peers=(),
        variants={"1M": {"capacity": 1_000_000}},
        warm=True,
    ),
    *(
        Work(
            f"replay-{priority}-{name}",
            f"add 10, draw 128 and set priorities; {name} steps of CartPole",
            "replay",
            100_000,
            REPLAY | {"priority": priority, "capacity": capacity},
            peers=("flashbax",),
        )
        for priority in ("uniform", "td_error")
        for name, capacity in (("10k", 10_000), ("1M", 1_000_000))
    ),
)


ON_POLICY = {  # one rollout, one update
    "num_envs": 4,
    "rollout_length": 128,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "max_grad_norm": 0.5,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
}

PG = (
    *SPEED[:3],
    Work(
        "ppo-minatar",
        "ppo on Breakout-MinAtar, 64 envs, 4 epochs of 8 minibatches, flat 64-64",
        "ppo",
        123 * 64 * 128,
        PPO
        | {
            "num_envs": 64,
            "num_minibatches": 8,
            "learning_rate": 5e-3,
            "activation": "relu",
            "torso": "mlp",
        },
        peers=(),
        env="Breakout-MinAtar",
    ),
    *(
        Work(
            agent,
            f"{agent}, 4 envs, 500k steps",
            agent,
            977 * 4 * 128,
            ON_POLICY | hyper,
            peers=(),
        )
        for agent, hyper in (
            ("a2c", {}),
            ("impala", {}),
            ("trpo", {"num_minibatches": 4}),
        )
    ),
)

PPO_OF_IMAGES = PPO | {"num_envs": 8, "activation": "relu"}  # minibatches of 256
DQN_OF_IMAGES = DQN | {"num_envs": 4, "batch_size": 32, "warmup_steps": 500}
NATURE = {"torso": "nature_cnn", "hidden_sizes": (512,)}
MINATAR = {"torso": "minatar", "hidden_sizes": (128,)}
FRAMES = "frames:Frames"
IMAGES = (
    Work(
        "ppo-nature",
        "ppo, images of 84 x 84 x 4, Mnih's network, minibatches of 256",
        "ppo",
        2 * 8 * 128,
        PPO_OF_IMAGES | NATURE,
        peers=("sb3",),
        env=FRAMES,
    ),
    Work(
        "dqn-nature",
        "dqn, the same images and network, batches of 32, an update per 4 steps",
        "dqn",
        2_000,
        DQN_OF_IMAGES | NATURE | {"capacity": 2_000},
        peers=("sb3",),
        env=FRAMES,
    ),
    Work(
        "ppo-minatar-conv",
        "ppo on Breakout-MinAtar, its convolution, minibatches of 256",
        "ppo",
        20 * 8 * 128,
        PPO_OF_IMAGES | MINATAR,
        peers=("sb3",),
        short={"sb3": 5 * 8 * 128},
        env="Breakout-MinAtar",
    ),
    Work(
        "dqn-minatar-conv",
        "dqn on Breakout-MinAtar, the same, batches of 32, an update per 4 steps",
        "dqn",
        20_000,
        DQN_OF_IMAGES | MINATAR | {"capacity": 10_000},
        peers=("sb3",),
        short={"sb3": 4_000},
        env="Breakout-MinAtar",
    ),
)

RUNS = (
    *(
        Work(
            f"{name}-x{number}",
            f"{name}, {number} {'seeds at once' if number > 1 else 'seed'}",
            agent,
            steps,
            hyper,
            seeds=number,
            env=env,
        )
        for name, agent, steps, hyper, env in (
            ("dqn", "dqn", 40_000, DQN | {"capacity": 10_000}, "CartPole-v1"),
            ("pqn", "pqn", 20 * 16 * 128, PQN, "CartPole-v1"),
            ("sac-64", "sac", 4_000, SAC | SMALL, "Pendulum-v1"),
            ("td3-64", "td3", 4_000, TD3 | SMALL, "Pendulum-v1"),
        )
        for number in (1, 8, 32)
    ),
    Work(
        "dqn-rates",
        "dqn, 32 learning rates at once",
        "dqn",
        40_000,
        DQN | {"capacity": 10_000},
        seeds=32,
        rates=True,
    ),
)
