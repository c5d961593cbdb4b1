"""The site's pages, which `make docs` builds."""

import importlib.util
import re
from pathlib import Path

import pytest

import rljax
from rljax import agents

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages():
    path = ROOT / "docs" / "site" / "pages.py"
    spec = importlib.util.spec_from_file_location("pages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(pages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    pages.write(folder)
    return folder


def test_every_page_is_in_the_navigation_once(site):
    index = (site / "index.md").read_text()
    trees = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    lines = [line for tree in trees for line in tree.splitlines()]
    listed = sorted(line for line in lines if line and not line.startswith(":"))
    written = [str(x.relative_to(site).with_suffix("")) for x in site.rglob("*.md")]
    assert listed == sorted(set(written) - {"index"})


def test_links_lead_to_pages_of_the_site(site):
    for page in site.glob("*.md"):
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if not re.match(r"https?:", link):
                assert (page.parent / link).exists(), (page.name, link)


def test_an_agent_has_its_defaults_with_what_the_source_says(site):
    page = (site / "agents" / "dqn.md").read_text()
    config = agents.get("dqn").Config()
    assert f"| `gamma` | `{config.gamma!r}` | discount, cut at termination |" in page
    assert "| `MountainCar-v0` | `learning_rate=0.001," in page
    assert "rljax train dqn --env CartPole-v1 --steps 500000 --seeds 8 --seed 0" in page
    assert {path.stem for path in site.glob("agents/*.md")} == set(agents.names())


def test_the_reference_has_every_public_module(pages, site):
    names = pages.modules()
    assert {"rljax.types", "rljax.losses.vtrace", "rljax.meta.rules.lpg"} <= {*names}
    assert not any("._" in name for name in names)
    assert {path.stem for path in site.glob("reference/*.md")} == set(names)


def test_the_citation_is_of_this_version():
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {rljax.__version__}" in lines
