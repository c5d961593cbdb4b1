"""Measures Rejax (github.com/keraJLi/rejax), evaluation switched off."""
# pyright: reportMissingImports=false

import time

import jax
import jax.numpy as jnp
from protocol import measure, print_result, read_job, result
from rejax import DQN, PPO, PQN, SAC, TD3

IMPORTED = time.time()


def ppo(job):
    """Returns the algorithm: PPO with the hyperparameters of the job."""
    hyper = job["hyper"]
    return PPO.create(
        env=job["env"],
        num_envs=hyper["num_envs"],
        num_steps=hyper["rollout_length"],
        num_epochs=hyper["num_epochs"],
        num_minibatches=hyper["num_minibatches"],
        learning_rate=hyper["learning_rate"],
        gamma=hyper["gamma"],
        gae_lambda=hyper["lambda_"],
        clip_eps=hyper["clip_epsilon"],
        ent_coef=hyper["entropy_cost"],
        vf_coef=hyper["value_cost"],
        max_grad_norm=hyper["max_grad_norm"],
        agent_kwargs=network(hyper),
        **length(job),
    )


def dqn(job):
    """Returns the algorithm: DQN with the hyperparameters of the job."""
    hyper = job["hyper"]
    if hyper["hidden_sizes"] != [64, 64]:  # not settable: it is in Rejax's code
        raise ValueError(f"Rejax's QNetwork is 64-64, not {hyper['hidden_sizes']}")
    return DQN.create(
        env=job["env"],
        agent="QNetwork",
        agent_kwargs={"activation": hyper["activation"]},
        ddqn=hyper["double"],
        num_envs=hyper["num_envs"],
        num_epochs=1,
        buffer_size=hyper["capacity"],
        fill_buffer=hyper["warmup_steps"],
        batch_size=hyper["batch_size"],
        learning_rate=hyper["learning_rate"],
        gamma=hyper["gamma"],
        max_grad_norm=hyper["max_grad_norm"],
        target_update_freq=hyper["target_period"] * hyper["num_envs"],
        polyak=0.0,  # copy
        eps_start=hyper["epsilon_start"],
        eps_end=hyper["epsilon_end"],
        exploration_fraction=hyper["exploration_fraction"],
        **length(job),
    )


def pqn(job):
    """Returns the algorithm: PQN with the hyperparameters of the job."""
    hyper = job["hyper"]
    if hyper["hidden_sizes"] != [64, 64]:  # as with DQN
        raise ValueError(f"Rejax's network is 64-64, not {hyper['hidden_sizes']}")
    return PQN.create(
        env=job["env"],
        num_envs=hyper["num_envs"],
        num_steps=hyper["rollout_length"],
        num_epochs=hyper["num_epochs"],
        num_minibatches=hyper["num_minibatches"],
        learning_rate=hyper["learning_rate"],
        gamma=hyper["gamma"],
        td_lambda=hyper["lambda_"],
        max_grad_norm=hyper["max_grad_norm"],
        eps_start=hyper["epsilon_start"],
        eps_end=hyper["epsilon_end"],
        exploration_fraction=hyper["exploration_fraction"],
        **length(job),
    )


def sac(job):
    """Returns the algorithm: SAC with the hyperparameters of the job."""
    hyper = job["hyper"]
    return SAC.create(
        env=job["env"],
        hidden_layer_sizes=tuple(hyper["hidden_sizes"]),
        agent_kwargs={"activation": hyper["activation"]},
        num_envs=hyper["num_envs"],
        num_epochs=hyper["num_updates"],
        buffer_size=hyper["capacity"],
        fill_buffer=hyper["warmup_steps"],
        batch_size=hyper["batch_size"],
        learning_rate=hyper["learning_rate"],
        gamma=hyper["gamma"],
        polyak=1.0 - hyper["target_rate"],
        target_update_freq=1,
        **length(job),
    )


def td3(job):
    """Returns the algorithm: TD3 with the hyperparameters of the job."""
    hyper = job["hyper"]
    if hyper["hidden_sizes"] != [64, 64]:  # as with DQN
        raise ValueError(f"Rejax's networks are 64-64, not {hyper['hidden_sizes']}")
    return TD3.create(
        env=job["env"],
        actor_kwargs={"activation": hyper["activation"]},
        critic_kwargs={"activation": hyper["activation"]},
        num_envs=hyper["num_envs"],
        num_epochs=hyper["num_updates"] // hyper["rollout_length"],
        policy_delay=hyper["policy_delay"],
        buffer_size=hyper["capacity"],
        fill_buffer=hyper["warmup_steps"],
        batch_size=hyper["batch_size"],
        learning_rate=hyper["learning_rate"],
        gamma=hyper["gamma"],
        polyak=1.0 - hyper["target_rate"],
        exploration_noise=hyper["noise_start"],
        target_noise=hyper["target_noise"],
        target_noise_clip=hyper["target_noise_clip"],
        **length(job),
    )


def network(hyper):
    """Returns the keyword arguments of actor and critic."""
    return {
        "activation": hyper["activation"],
        "hidden_layer_sizes": tuple(hyper["hidden_sizes"]),
    }


def at_rates(algo, job):
    """Returns a training of all keys, at rates a tenth of the job's to ten times."""
    middle, number = job["hyper"]["learning_rate"], job["seeds"]
    rates = middle * 10 ** jnp.linspace(-1.0, 1.0, number)

    def train(key, rate):
        return algo.replace(learning_rate=rate).train(key)

    return lambda keys: jax.vmap(train)(keys, rates)


def length(job):
    """Returns arguments for one evaluation-free stretch of training."""
    return {
        "total_timesteps": job["steps"],
        "eval_freq": job["steps"],
        "skip_initial_evaluation": True,
    }


def main():
    """Compiles the training of all seeds, then times it."""
    job = read_job()
    makers = {"ppo": ppo, "dqn": dqn, "pqn": pqn, "sac": sac, "td3": td3}
    algo = makers[job["agent"]](job)
    algo = algo.replace(eval_callback=lambda algo, state, key: ())
    train, key = algo.train, jax.random.PRNGKey(job["seed"])
    if job["seeds"] > 1:
        train, key = jax.vmap(train), jax.random.split(key, job["seeds"])
    if job.get("rates"):
        train = at_rates(algo, job)
    begin = time.perf_counter()
    compiled = jax.jit(train).lower(key).compile()
    compile_s = time.perf_counter() - begin

    def run():
        state, _ = jax.block_until_ready(compiled(key))
        return int(state.global_step.sum())

    ready = time.time()
    seconds, steps = measure(run)
    device = jax.devices()[0]
    print_result(
        result(
            job,
            imported=IMPORTED,
            compile_s=compile_s,
            ready=ready,
            seconds=seconds,
            steps=steps,
            device="cpu" if device.platform == "cpu" else device.device_kind,
            packages=("rejax", "gymnax", "jax"),
        )
    )


if __name__ == "__main__":
    main()
