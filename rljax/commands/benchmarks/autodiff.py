"""The suite `autodiff`: what rljax.autodiff costs, in ordinary gradients."""

import dataclasses

from .comparisons import Comparison, listed


@dataclasses.dataclass(frozen=True)
class Work:
    """Functions of one network and batch; the whole of it is a worker's job."""

    name: str
    text: str
    comparisons: tuple[Comparison, ...]
    unit: str = "ms"  # of a call, or "MB" of temporary memory
    obs_shape: tuple[int, ...] = (400,)
    hidden_sizes: tuple[int, ...] = (256, 256)
    batch: int = 256
    rounds: int = 15  # samples of each function
    sample_s: float = 0.05  # see protocol.alternate
    suite: str = "autodiff"

    def __str__(self) -> str:
        """The line of --list."""
        return listed(self)


WORKS = (
    Work(
        "norms-mlp",
        "norms of transitions' gradients, 400-256-256-6 MLP, batch of 256",
        (
            Comparison("norms", "grad", "<= 0.7"),
            Comparison("norms vmap", "norms", ">= 15"),
        ),
    ),
    Work(
        "value-and-grad-mlp",
        "losses, mean gradient and norms in one pass, the same MLP and batch",
        (
            Comparison("value_and_grad_with_norms", "value_and_grad", "<= 1.3"),
            Comparison(
                "value_and_grad_with_norms weighted",
                "value_and_grad weighted",
                "<= 1.3",
            ),
        ),
    ),
    Work(
        "norms-minatar",
        "norms of transitions' gradients, MinAtar's network, batch of 256",
        (Comparison("norms", "grad", "<= 1.6"),),
        obs_shape=(10, 10, 4),
        hidden_sizes=(128,),
    ),
    Work(
        "memory-mlp",
        "temporary memory on the MLP, batch of 1024",
        (
            Comparison("norms", "grad", "<= 2"),
            Comparison("value_and_grad_with_norms", "grad", "<= 2"),
        ),
        unit="MB",
        batch=1024,
    ),
    Work(
        "hvp",
        "Hessian times vector, the MLP and batch of norms-mlp",
        (Comparison("hvp", "grad", "<= 2.5"),),
    ),
    Work(
        "natural-gradient",
        "ten conjugate gradients of a quarter of the states' Fisher matrix, the same",
        (Comparison("natural_gradient", "grad", "<= 12"),),
    ),
    Work(
        "curvature",
        "Gauss-Newton and Fisher matrix times vector, the same",
        (Comparison("gauss_newton_vp", "grad"), Comparison("fisher_vp", "grad")),
    ),
)
