"""What scripts/benchmark.py is made of, and the processes that it starts."""
