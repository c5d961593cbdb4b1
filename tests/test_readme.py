"""The README's Python runs as it stands."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

README = Path(__file__).parents[1] / "README.md"


def run_section(title):
    """Run a section's Python block; its names."""
    section = README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    return names


def test_use_the_losses(x64):
    names = run_section("Use the losses in your own project")
    score, eta = names["score"], names["eta"]
    args = jnp.ones(3), names["trajectory"], names["held_out"]
    for name, h in (("gamma", 1e-6), ("lambda", 1e-6)):
        up, down = (score(eta | {name: eta[name] + s}, *args) for s in (h, -h))
        slope = (up - down) / (2 * h)
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(names["meta_gradient"][name], slope, 1e-6)


def test_the_api(capsys):
    names = run_section("The API in 30 lines")
    assert float(capsys.readouterr().out) > 100
    assert names["seeds"].step.shape == (4,)
    assert jnp.isfinite(names["curves"]).any(axis=1).all()
