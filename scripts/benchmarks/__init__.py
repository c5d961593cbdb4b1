"""The parts of scripts/benchmark.py, and the processes that it starts."""
