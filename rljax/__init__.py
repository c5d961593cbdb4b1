"""Reinforcement learning in JAX where differentiation is the instrument."""
