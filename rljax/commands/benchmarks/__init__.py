"""The parts of the command `benchmark`, and the processes that it starts."""
