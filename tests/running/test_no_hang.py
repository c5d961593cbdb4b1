"""Fresh processes end; takes about an hour."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("hang_check.py")


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(20))
@pytest.mark.parametrize("num_seeds", [1, 16, 64])
@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_a_fresh_process_ends(agent, num_seeds, attempt):
    """Finds hangs, which come in some processes and not in others."""
    result = subprocess.run(
        [sys.executable, PROGRAM, agent, str(num_seeds)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{agent} trained {num_seeds} seeds\n"
