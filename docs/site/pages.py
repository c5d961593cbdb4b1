"""Collects the site's pages: README and docs/, the agents, the reference.

python docs/site/pages.py FOLDER
"""

import csv
import dataclasses
import importlib
import inspect
import pkgutil
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import rljax
from rljax import agents

ROOT = Path(__file__).parents[2]
INDEX = "README.md"
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md")
GUIDES = {  # caption: pages
    "Guides": (
        "training",
        "sweeps",
        "comparing",
        "export",
        "environments",
        "bring-your-own",
        "scale",
        "instruments",
        "coming-from-rlax",
    ),
    "Meta-gradients": (
        "from-a-number-to-a-rule",
        "meta-gradients",
        "learned-rules-lpg",
        "learned-rules-disco",
        "meta-safe-optimizers",
    ),
    "Measured": ("results", "speed"),
    "Project": ("design", "CONTRIBUTING", "CHANGELOG", "LICENSE"),
}
HIDDEN = ("rljax.commands", "rljax.envs.adapters.")  # their options and names are told


def linked(text: str) -> str:
    """The text of a page at the top, with links to pages of the site."""
    return text.replace("](docs/", "](").replace("](LICENSE)", "](LICENSE.md)")


def tree(caption: str, pages: tuple[str, ...]) -> str:
    """An entry of the navigation."""
    lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]
    return "\n".join(lines)


def modules() -> list[str]:
    """The public modules, packages before their parts."""
    found = ["rljax.types", "rljax.config", "rljax.contracts"]
    for package in pkgutil.walk_packages(rljax.__path__, "rljax."):
        parts = package.name.split(".")
        if any(part.startswith("_") for part in parts) or parts[1] == "agents":
            continue
        if package.name not in found and not package.name.startswith(HIDDEN):
            found.append(package.name)
    return found


def is_face(module: ModuleType) -> bool:
    """Whether a module hands on the names of its parts."""
    return hasattr(module, "__path__")


def reference_page(name: str) -> str:
    """A module's names, from their docstrings; those of a face are in its parts."""
    module = importlib.import_module(name)
    lines = [f"# {name}", ""]
    if is_face(module):
        lines += ["```text", inspect.cleandoc(module.__doc__ or ""), "```"]
    else:
        lines += ["```{eval-rst}", f".. automodule:: {name}", "```"]
    return "\n".join(lines) + "\n"


def comment(config: type, name: str) -> str:
    """What the line of a config's field says about it."""
    for owner in config.__mro__:
        if name in vars(owner).get("__annotations__", {}):
            line = rf"^    {name}: [^#\n]*# (.*)$"
            found = re.search(line, inspect.getsource(owner), re.MULTILINE)
            return found[1] if found else ""
    return ""


def shown(value: Any) -> str:
    """A value as a cell of a table."""
    return f"`{value!r}`".replace("|", "\\|")


def defaults(config: type) -> list[str]:
    """A table of a config's fields."""
    lines = ["## Config", "", "| field | default | |", "|---|---|---|"]
    for field in dataclasses.fields(config):
        default = shown(getattr(config(), field.name))
        about = comment(config, field.name).replace("|", "\\|")
        lines.append(f"| `{field.name}` | {default} | {about} |")
    return [*lines, ""]


def presets(found: dict[str, Any]) -> list[str]:
    """A table of what the command line sets for an environment."""
    if not found:
        return []
    lines = ["## Presets", "", "| environment | config |", "|---|---|"]
    for env, preset in found.items():
        values = ", ".join(f"{name}={value!r}" for name, value in preset.config.items())
        lines.append(f"| `{env}` | `{values}` |")
    return [*lines, ""]


def results(agent: str) -> list[str]:
    """A table of what an agent has reached, with the commands."""
    with (ROOT / "docs" / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["agent"] == agent]
    if not rows:
        return []
    lines = ["## Results", "", "Mean return of the final policies over the seeds, with"]
    lines += ["the worst and the best seed:", ""]
    lines += ["| command | return | worst | best |", "|---|---|---|---|"]
    for row in rows:
        words = ["rljax train", agent, "--env", row["env"], "--steps", row["steps"]]
        words += ["--seeds", row["seeds"], "--seed", row["first_seed"], row["options"]]
        scores = f"{row['mean_return']} | {row['worst_seed']} | {row['best_seed']}"
        lines.append(f"| `{' '.join(words).strip()}` | {scores} |")
    return [*lines, ""]


def agent_page(name: str) -> str:
    """An agent: its papers, results, defaults, presets and functions."""
    module = agents.get(name)
    lines = [f"# {name}", "", inspect.cleandoc(module.__doc__ or ""), ""]
    lines += results(name)
    lines += defaults(module.Config)
    lines += presets(getattr(module, "PRESETS", {}))
    lines += ["## Functions", "", "```{eval-rst}"]
    lines += [f".. automodule:: rljax.agents.{name}", "   :exclude-members: Config"]
    return "\n".join([*lines, "```", ""])


def write(folder: Path) -> None:
    """Write all pages."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "agents").mkdir(parents=True)
    (folder / "reference").mkdir()
    for page in (ROOT / "docs").iterdir():
        if page.is_file():
            shutil.copy(page, folder)
    for name in BESIDE:
        (folder / name).write_text(linked((ROOT / name).read_text()))
    text = (ROOT / "LICENSE").read_text()
    (folder / "LICENSE.md").write_text(f"# License\n\n```text\n{text}```\n")
    navigation = [tree(caption, pages) for caption, pages in GUIDES.items()]
    names = tuple(agents.names())
    navigation.insert(2, tree("Agents", tuple(f"agents/{name}" for name in names)))
    every = modules()
    navigation.append(tree("Reference", tuple(f"reference/{name}" for name in every)))
    index = linked((ROOT / INDEX).read_text())
    (folder / "index.md").write_text(index + "\n" + "\n".join(navigation))
    for name in names:
        (folder / "agents" / f"{name}.md").write_text(agent_page(name))
    for name in every:
        (folder / "reference" / f"{name}.md").write_text(reference_page(name))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
