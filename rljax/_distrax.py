"""distrax, imported without what it loads and never uses."""

from rljax._deferred import deferred

# tensorflow-probability's numpy half has them at hand; distrax runs its jax half.
with deferred("scipy.linalg", "scipy.special"):
    import distrax

__all__ = ["distrax"]
