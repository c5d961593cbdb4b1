"""Measures Stable-Baselines3 on the CPU, on one torch thread.

One thread, because more do not help nets of this size and, where another process
wants a core too, make it up to 80 times slower (they wait for each other spinning).
"""
# pyright: reportMissingImports=false

import time

import gymnasium
import minatar.gym
import numpy
import torch
from protocol import measure, print_result, read_job, result
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN

IMPORTED = time.time()
ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


class Frames(gymnasium.Env):
    """The environment of frames.py."""

    action_space = gymnasium.spaces.Discrete(6)
    observation_space = gymnasium.spaces.Box(0, 255, (84, 84, 4), numpy.uint8)

    def reset(self, *, seed=None, options=None):
        """Returns the first observation, and no information."""
        super().reset(seed=seed)
        self.time, self.place = 0, int(self.np_random.integers(72))
        return self.look(), {}

    def step(self, action):
        """Returns observation, reward, whether it ended or was cut, and no more."""
        move = {0: -4, 1: 4}.get(int(action), 0)
        self.time, self.place = self.time + 1, min(max(self.place + move, 0), 72)
        reward = float(abs(self.place - 36) < 12)
        return self.look(), reward, False, self.time >= 200, {}

    def look(self):
        """Returns the image of the state."""
        image = numpy.zeros((84, 84, 4), numpy.uint8)
        image[:, self.place : self.place + 12] = 255
        return image


class MinAtarConvolution(BaseFeaturesExtractor):
    """Young and Tian (2019): 16 features of 3 x 3 and a dense layer."""

    def __init__(self, observation_space, features_dim):
        super().__init__(observation_space, features_dim)
        height, width, planes = observation_space.shape
        self.convolution = torch.nn.Conv2d(planes, 16, 3)
        self.dense = torch.nn.Linear(16 * (height - 2) * (width - 2), features_dim)

    def forward(self, observations):
        """Maps `[B, height, width, channels]` to `[B, features_dim]`."""
        x = torch.relu(self.convolution(observations.permute(0, 3, 1, 2)))
        return torch.relu(self.dense(x.flatten(1)))


ENVS = {"frames:Frames": Frames, "Breakout-MinAtar": "MinAtar/Breakout-v1"}
TORSOS = {"nature_cnn": NatureCNN, "minatar": MinAtarConvolution}


def ppo(job, env):
    """Returns the model: PPO with the hyperparameters of the job."""
    hyper = job["hyper"]
    batch = hyper["num_envs"] * hyper["rollout_length"]
    return PPO(
        "MlpPolicy",
        env,
        n_steps=hyper["rollout_length"],
        n_epochs=hyper["num_epochs"],
        batch_size=batch // hyper["num_minibatches"],
        learning_rate=hyper["learning_rate"],
        gamma=hyper["gamma"],
        gae_lambda=hyper["lambda_"],
        clip_range=hyper["clip_epsilon"],
        clip_range_vf=hyper["clip_epsilon"],
        ent_coef=hyper["entropy_cost"],
        vf_coef=hyper["value_cost"],
        max_grad_norm=hyper["max_grad_norm"],
        policy_kwargs=network(hyper) | {"share_features_extractor": False},
        seed=job["seed"],
        device="cpu",
    )


def dqn(job, env):
    """Returns the model: DQN with the hyperparameters of the job (never double)."""
    hyper = job["hyper"]
    return DQN(
        "MlpPolicy",
        env,
        train_freq=1,  # in steps of all environments together
        gradient_steps=1,
        buffer_size=hyper["capacity"],
        learning_starts=hyper["warmup_steps"],
        batch_size=hyper["batch_size"],
        learning_rate=hyper["learning_rate"],
        gamma=hyper["gamma"],
        max_grad_norm=hyper["max_grad_norm"],
        target_update_interval=hyper["target_period"] * hyper["num_envs"],
        exploration_initial_eps=hyper["epsilon_start"],
        exploration_final_eps=hyper["epsilon_end"],
        exploration_fraction=hyper["exploration_fraction"],
        policy_kwargs=network(hyper),
        seed=job["seed"],
        device="cpu",
    )


def sac(job, env):
    """Returns the model: SAC with the hyperparameters of the job."""
    hyper = job["hyper"]
    return SAC(
        "MlpPolicy",
        env,
        train_freq=1,
        gradient_steps=hyper["num_updates"],
        buffer_size=hyper["capacity"],
        learning_starts=hyper["warmup_steps"],
        batch_size=hyper["batch_size"],
        learning_rate=hyper["learning_rate"],
        gamma=hyper["gamma"],
        tau=hyper["target_rate"],
        policy_kwargs=network(hyper),
        seed=job["seed"],
        device="cpu",
    )


def network(hyper):
    """Returns the shape of the networks."""
    if "torso" in hyper:
        (features,) = hyper["hidden_sizes"]
        return {
            "net_arch": [],
            "features_extractor_class": TORSOS[hyper["torso"]],
            "features_extractor_kwargs": {"features_dim": features},
        }
    return {
        "net_arch": list(hyper["hidden_sizes"]),
        "activation_fn": ACTIVATIONS[hyper["activation"]],
    }


def main():
    """Warms up for one iteration (and DQN's random steps), then times learning."""
    job = read_job()
    hyper = job["hyper"]
    torch.set_num_threads(1)
    minatar.gym.register_envs()
    env = make_vec_env(
        ENVS.get(job["env"], job["env"]), n_envs=hyper["num_envs"], seed=job["seed"]
    )
    model = {"ppo": ppo, "dqn": dqn, "sac": sac}[job["agent"]](job, env)
    warm_up = hyper["num_envs"] * hyper["rollout_length"]
    model.learn(warm_up + hyper.get("warmup_steps", 0))

    def run():
        before = model.num_timesteps
        model.learn(job["steps"], reset_num_timesteps=False)
        return model.num_timesteps - before

    ready = time.time()
    seconds, steps = measure(run)
    print_result(
        result(
            job,
            imported=IMPORTED,
            compile_s=0.0,
            ready=ready,
            seconds=seconds,
            steps=steps,
            device="cpu",
            packages=("stable-baselines3", "gymnasium", "torch"),
        )
    )


if __name__ == "__main__":
    main()
