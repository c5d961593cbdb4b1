"""README and docs/: the Python runs, prints what it says, and what is named exists."""

import ast
import csv
import dataclasses
import functools
import inspect
import pkgutil
import re
import shlex
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, autodiff, envs, loading, meta, types
from rljax.commands import front
from rljax.envs import adapters
from rljax.meta import maml
from rljax.meta.rules import lpg, meta_training

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
LAUNCHERS = {"nodes", "ntasks_per_node", "cpus_per_task", "signal"}  # Slurm's options
LAUNCHERS |= {"host", "worker", "command"}  # of Open MPI and gcloud
NUMBER = r"nan|-?\d+(?:\.\d+)?(?:e-?\d+)?"


def text(page):
    return (ROOT / page).read_text()


def sections(page):
    """A page's text by the titles of its sections; "" is for the text before them."""
    parts = re.split(r"^## (.*)\n", text(page), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def snippets(page, title):
    """A section's Python blocks, which share their names."""
    return re.findall(r"```python\n(.*?)```", sections(page)[title], re.DOTALL)


API = "README.md", "The API in 30 lines"
LOSSES = "docs/instruments.md", "Losses"
AUTODIFF = "docs/instruments.md", "Autodiff"
CHECK = "docs/environments.md", "Bring your own environment"
TUNE = "docs/meta-gradients.md", "In your own code"
PARTS = "docs/meta-gradients.md", "The parts"
ADAPT = "docs/meta-gradients.md", "Learn to adapt"
LOOP = "docs/design.md", "The loop"
LADDER = "docs/from-a-number-to-a-rule.md", "The ladder"
RULE = LADDER[0], "A rule"  # goes on where the ladder ends
OWN = "docs/bring-your-own.md"  # tests/commands/test_bring_your_own.py runs the page
WITH_A_TEST = {API, LOSSES, AUTODIFF, CHECK, TUNE, PARTS, ADAPT, LOOP, RULE}
OTHERS = [
    (page, title)
    for page in PAGES
    for title in sections(page)
    if snippets(page, title) and (page, title) not in WITH_A_TEST and page != OWN
]


def execute(code, names):
    """Run code as it stands; `names` has what it uses and gets what it defines."""
    exec(compile(code, "snippet", "exec"), names)


def has_tracers(value):
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(value))


def traced(code, names):
    """Run code in a trace; returns its arrays by name, and what it prints."""
    printed = []
    names["print"] = lambda *values, sep=" ": printed.append(values)
    before = dict(names)
    execute(code, names)
    del names["print"]
    arrays = {
        name: value
        for name, value in names.items()
        if value is not before.get(name) and has_tracers(value)
    }
    for name in arrays:  # a tracer means nothing outside
        del names[name]
    return arrays, printed


def execute_at_once(code, names):
    """Run code as one program: its operations, one by one, take longer to compile."""
    known = {}  # of what is printed; the rest is computed

    def program():
        arrays, printed = traced(code, names)
        lines = dict(enumerate(printed))
        known.update({i: line for i, line in lines.items() if not has_tracers(line)})
        return arrays, {i: line for i, line in lines.items() if i not in known}

    arrays, computed = jax.jit(program)()
    names.update(arrays)
    for _, values in sorted((known | computed).items()):
        print(*values)


either_way = pytest.mark.parametrize(
    "run", [execute_at_once, pytest.param(execute, marks=pytest.mark.slow)]
)


def run_section(place, run=execute):
    """Run a section's only Python block; its names."""
    (code,), names = snippets(*place), {}
    run(code, names)
    return names


def in_shapes(place):
    """The shapes of a section's arrays, by name, and of what it prints."""
    (code,) = snippets(*place)
    return jax.eval_shape(lambda: traced(code, {}))


def check_prints(code, printed):
    """Behind `print`, or on a line of its own, stands what is printed.

    Numbers are right to their last digit. A text that ends in dots begins the line.
    """
    lines = printed.splitlines()
    for begin in re.findall(r"^# (.*?),? \.\.\.$", code, re.MULTILINE):
        (line,) = (line for line in lines if line.startswith(begin))
        lines.remove(line)
    claims = re.findall(r"(?:\)  |^)# (nan|\(?-?\d[^:\n]*)", code, re.MULTILINE)
    claimed, actual = (re.findall(NUMBER, " ".join(x)) for x in (claims, lines))
    assert len(actual) == len(claimed), (claims, printed)
    for claim, number in zip(claimed, actual, strict=True):
        last_digit = 10.0 ** -len(claim.partition(".")[2])
        difference = abs(float(number) - float(claim))
        assert difference <= 0.51 * last_digit or claim == number, (claim, number)


@either_way
@pytest.mark.parametrize("place", OTHERS, ids=" ".join)
def test_snippets_run(place, run, capsys):
    """In the slow run as they stand, one operation after the other."""
    names = {}
    for code in snippets(*place):
        run(code, names)
        check_prints(code, capsys.readouterr().out)


@either_way
def test_losses(run, x64):
    """In the slow run as it stands, one operation after the other."""
    names = run_section(LOSSES, run)
    score, eta = jax.jit(names["score"]), names["eta"]
    params = np.ones(3)
    for name, h in (("gamma", 1e-6), ("lambda", 1e-6)):
        up, down = (
            score(
                eta | {name: eta[name] + s},
                params,
                names["trajectory"],
                names["held_out"],
            )
            for s in (h, -h)
        )
        slope = (up - down) / (2 * h)
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(names["meta_gradient"][name], slope, 1e-6)


def test_the_discount_that_an_agent_chooses():
    names = run_section(TUNE)
    agent, config = names["agent"], names["config"]
    state = jax.eval_shape(agent.init, config, jax.random.key(0))
    assert set(state.raw) == {"gamma", "entropy_cost"}
    assert state.window.keys.shape == (2, 2)


def slope(f, h=1e-2):
    """The derivative at a discount of 0.9."""
    f = jax.jit(f)
    return (f(0.9 + h) - f(0.9 - h)) / (2 * h)


def check_derivatives(names):
    first_return = jax.jit(names["first_return"])
    assert abs(first_return(0.9) - (1 + 0.9 + 0.81 + 0.729)) < 1e-6


def check_meta_gradient(names):
    error = names["error"]
    # One update to v = 0.3 + 0.1 (1 + 2 gamma - 0.3), then half the square of 5 - v.
    exact = -(5 - 0.55) * 0.1 * 2
    meta_gradient = jax.jit(jax.grad(error), static_argnums=1)
    assert abs(meta_gradient(0.9, "bootstrap") - exact) < 1e-6
    assert abs(slope(lambda gamma: error(gamma, "target")) - exact) < 1e-3


def check_target(names):
    error = names["error"]
    exact = slope(lambda gamma: error(gamma, names["stopped"]))
    meta_gradient = jax.jit(jax.grad(error), static_argnums=1)
    assert abs(meta_gradient(0.9, names["separate"]) - exact) < 1e-3


def check_sample(names):
    q, shares = np.asarray(names["q"]), np.full(3, 1 / 3)  # of equal logits
    exact = shares * (q - q @ shares)
    for gradient in np.asarray(names["gradients"]):
        np.testing.assert_allclose(gradient, exact, rtol=1e-6)


def check_norms(names):
    per_transition = jax.jit(jax.vmap(jax.grad(names["loss"]), (None, 0)))
    grads = jax.tree.leaves(per_transition(names["params"], names["batch"]))
    squares = sum(np.sum(np.square(g), tuple(range(1, g.ndim))) for g in grads)
    np.testing.assert_allclose(names["norms"], np.sqrt(squares), rtol=1e-5)


@either_way
def test_autodiff(run, capsys):
    """In the slow run as it stands, one operation after the other."""
    checks = (
        check_derivatives,
        check_meta_gradient,
        check_target,
        check_sample,
        check_norms,
    )
    names = {}
    for check, code in zip(checks, snippets(*AUTODIFF), strict=True):
        run(code, names)
        printed = capsys.readouterr().out
        assert printed
        check_prints(code, printed)
        check(names)


@pytest.mark.parametrize("place", [CHECK, PARTS], ids=" ".join)
def test_snippets_that_need_numbers_run(place, capsys):
    (code,) = snippets(*place)
    execute(code, {})
    check_prints(code, capsys.readouterr().out)


def named_in_table(place):
    """The names in the last table of a section."""
    table = sections(place[0])[place[1]].rpartition("|---|---|")[2].partition("\n\n")[0]
    return set(re.findall(r"`(\w+)`", table))


def test_the_table_of_autodiff_has_every_function():
    functions = {
        x for x in autodiff.__all__ if not isinstance(getattr(autodiff, x), type)
    }
    assert named_in_table(AUTODIFF) == functions


def test_the_table_of_meta_has_functions():
    named = named_in_table(PARTS)
    assert len(named) >= 5 and named <= {*meta.__all__}


def test_learn_to_adapt_in_shapes():
    arrays, _ = in_shapes(ADAPT)
    params = arrays["state"].params
    assert arrays["metrics"]["adapted_return"].shape == (50,)
    chex.assert_trees_all_equal_shapes_and_dtypes(arrays["adapted"], params)


@pytest.mark.slow
def test_learn_to_adapt():
    """Runs 50 updates, after which an adaptation helps and moves every parameter."""
    names = run_section(ADAPT)
    metrics = jax.tree.map(np.asarray, names["metrics"])
    before, after = (metrics[x][-20:].mean() for x in ("return", "adapted_return"))
    assert after > before + 0.2
    moved = jax.tree.map(np.subtract, names["adapted"], names["state"].params)
    assert all(np.any(x != 0) for x in jax.tree.leaves(moved))


def test_a_rule_in_shapes():
    code = "\n".join(snippets(*LADDER) + snippets(*RULE))
    arrays, _ = jax.eval_shape(lambda: traced(code, {}))
    assert {curve.shape for curve in arrays["curves"].values()} == {(160,)}


@pytest.mark.slow
def test_a_rule():
    """Meta-trains the rules, which are as good and as bad as the page's table says.

    Nearly: another rounding is another rule after a thousand steps.
    """
    names = {}
    for code in snippets(*LADDER) + snippets(*RULE):
        execute(code, names)
    (table,) = re.findall(r"---\|\n((?:\| .*\n)*)", sections(RULE[0])[RULE[1]])
    rows = [re.findall(rf"\| ({NUMBER}) ", row) for row in table.splitlines()]
    for name, row in zip(("one-step", "short", "long"), rows, strict=True):
        curve = [names["curves"][name][i - 1] for i in (5, 10, 20, 40, 160)]
        rtol = 0.01 if name == "one-step" else 0.4
        np.testing.assert_allclose(curve, [*map(float, row)], rtol=rtol, atol=0.05)


def test_the_loop_in_shapes():
    arrays, _ = in_shapes(LOOP)
    assert arrays["value"].shape == (8,)
    assert arrays["metrics"]["episode_return"].shape == (10,)


@pytest.mark.slow
def test_the_loop():
    """Runs the chunks, after which all steps are counted and values are numbers."""
    names = run_section(LOOP)
    assert names["state"].step == 20 * 8 * 16
    assert jnp.isfinite(names["value"]).all()


def test_the_api_in_shapes():
    arrays, ((mean_return,),) = in_shapes(API)
    assert mean_return.shape == ()
    assert arrays["seeds"].step.shape == (4,)
    assert len(arrays["curves"]) == 3


@pytest.mark.slow
def test_the_api(capsys):
    """Trains and plays, so that the returns are those of a policy that has learned."""
    names = run_section(API)
    assert float(capsys.readouterr().out) > 100
    assert names["seeds"].step.shape == (4,)
    assert jnp.isfinite(names["curves"]).any(axis=1).all()


def test_the_api_takes_30_lines():
    (code,) = snippets(*API)
    assert len(code.splitlines()) <= 30


def test_the_readme_is_short():
    assert len(text("README.md").splitlines()) <= 250


def test_the_readme_leads_to_every_page():
    linked = re.findall(r"\]\((docs/[\w-]+\.md)\)", text("README.md"))
    assert {*linked} == {*PAGES[1:]}


def actions_of(agent):
    """The actions that an agent takes, in the words of the README."""
    kinds = {
        "discrete": types.Discrete(2),
        "continuous": types.Box(shape=(1,), low=(-1.0,), high=(1.0,)),
    }
    found = []
    for kind, space in kinds.items():
        spec = types.Spec(obs=types.ObsSpec.array((3,)), action=space)
        spec = spec._replace(differentiable=True)
        try:
            agents.get(agent).make(spec)
            found.append(kind)
        except ValueError:
            pass
    return "both" if len(found) == 2 else found[0]


def test_the_table_of_agents_has_each_and_its_actions():
    rows = re.findall(
        r"^\| `(\w+)` \| .* \| (\w+) \|$", sections("README.md")["Agents"], re.M
    )
    assert sorted(name for name, _ in rows) == agents.names()
    assert dict(rows) == {name: actions_of(name) for name, _ in rows}


def test_the_table_of_wrappers_has_every_option_of_wrap():
    rows = re.findall(
        r"^\| `(\w+) \S+` \|", sections("docs/environments.md")["Wrappers"], re.M
    )
    parameters = inspect.signature(envs.wrap).parameters.values()
    assert {*rows} == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


# Links, paths and names.

EVERYWHERE = pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
MADE_UP = ("mydqn", "maze")  # by the recipes of CONTRIBUTING.md


def anchors(page):
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings}


@EVERYWHERE
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.relative_to(ROOT)), link


@EVERYWHERE
def test_paths_exist(page):
    places = r"(?<![\w/.])(?:rljax|agents|scripts|tests|docs|\.ci)/[\w./*-]*\w"
    for path in re.findall(places, text(page)):
        assert list(ROOT.glob(path)) or any(x in path for x in MADE_UP), path


SHORT = {  # first words of names as pages have them
    "Agent": "rljax.types.Agent",
    "Spec": "rljax.types.Spec",
    "agents": "rljax.agents",
    "autodiff": "rljax.autodiff",
    "distrax": "distrax",
    "envs": "rljax.envs",
    "jax": "jax",
    "losses": "rljax.losses",
    "meta": "rljax.meta",
    "networks": "rljax.networks",
    "optax": "optax",
    "rljax": "rljax",
}


@EVERYWHERE
def test_dotted_names_exist(page):
    for first, rest in re.findall(r"`(\w+)((?:\.\w+)+)[`(]", text(page)):
        if first in SHORT:
            pkgutil.resolve_name(SHORT[first] + rest)  # raises where nothing is there


# Commands.


def commands(page):
    """The words of every command of a page, its lines joined."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text(page), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    programs = r"(?<!`)`((?:python|make|rljax) [^`]*)`"
    quoted = re.findall(programs, text(page).replace("\n", " "))
    words = [shlex.split(line, comments=True) for line in lines + quoted]
    return [command for command in words if command]


def options(command):
    """The words after each option of a command; those before them are under ""."""
    found, name = {"": []}, ""
    for word in command:
        if word.startswith("--"):
            name = word.removeprefix("--").replace("-", "_")
            found[name] = []
        else:
            found[name].append(word)
    return found


def fields(config):
    return {field.name for field in dataclasses.fields(config)}


def known_options(command, config):
    """The options of a command, with underscores."""
    rooms = ROOT / "rljax" / "commands"
    sources = [rooms / f"{command}.py", *rooms.glob(f"{command}s/*.py")]
    source = "\n".join(path.read_text() for path in sources)
    names = set(re.findall(r"^ +(\w+): .*\n +\"\"\"", source, re.MULTILINE))
    names |= {f"meta_settings.{name}" for name in fields(meta.Settings)}
    names |= {f"settings.{name}" for name in fields(lpg.Settings)}
    names |= {f"config.{name}" for name in fields(config)} if config else set()
    names |= {f"config.no_{name}" for name in fields(config)} if config else set()
    of_all = front.NO_CACHE.removeprefix("--").replace("-", "_")
    return names | {"", "help", of_all}


@functools.cache
def environment(name, *pairs):
    """An environment as on a command line; raises for what it does not have."""
    values = [ast.literal_eval(value) for value in pairs[1::2]]
    return envs.make(name, **dict(zip(pairs[::2], values, strict=True)))


def config_of(command, named):
    """The config that a command's options are for."""
    if command == "maml":
        return maml.Config()
    if command == "meta_train":
        return meta_training.Config()
    named = named[""]
    if command in ("train", "sweep") and named and not loading.is_reference(named[0]):
        return agents.get(named[0]).Config()
    return None


def as_command(program, words):
    """A command of rljax and its arguments, by either door; None for other programs."""
    if program == "rljax" and not words[0].startswith("-"):
        return words[0].replace("-", "_"), words[1:]
    if program == "python" and words[0].startswith("scripts/"):
        return words[0].removeprefix("scripts/").removesuffix(".py"), words[1:]
    return None


@EVERYWHERE
def test_commands_have_what_they_name(page):
    targets = re.findall(r"^([\w-]+):", text("Makefile"), re.MULTILINE)
    for program, *words in commands(page):
        if program == "make":
            assert words[0] in targets, words
        if found := as_command(program, words):
            command, named = found[0], options(found[1])
            config = config_of(command, named)
            assert {*named} <= known_options(command, config), words
            if "env" in named or "env_params" in named:
                env = named.get("env", ["CartPole-v1"])
                package = env[0].partition("/")[0]
                there = package not in adapters.PACKAGES or adapters.is_installed(
                    package
                )
                if env != ["..."] and there and not loading.is_reference(*env):
                    environment(*env, *named.get("env_params", []))
            if tuned := named.get("meta"):
                assert all(
                    hasattr(config, x) for x in meta.parse_parameters(tuned, config)
                )


@EVERYWHERE
def test_options_exist(page):
    """Those that a page only mentions, of any command and agent."""
    commands = [name.replace("-", "_") for name in front.COMMANDS]
    configs = [agents.get(name).Config for name in agents.names()]
    configs += [maml.Config, meta_training.Config]
    known = set.union(
        *(known_options(command, None) for command in commands),
        *(known_options("train", config) for config in configs),
    )
    found = re.findall(r"(?<![\w`-])`?--([a-z][\w.-]*)", text(page))
    names = {name.rstrip(".").replace("-", "_") for name in found}
    assert names - (LAUNCHERS if page == "docs/scale.md" else set()) <= known


# Numbers.


def steps_of(agent, words):
    """Environment steps of a `train.py` command, by its option or by the config."""
    if "steps" in words:
        return int(words["steps"][0])
    pairs = words.get("env_params", [])
    values = (ast.literal_eval(value) for value in pairs[1::2])
    params = dict(zip(pairs[::2], values, strict=True))
    return agents.config_for(agent, *words["env"], params).total_steps


def test_results_are_those_of_the_csv():
    rows = re.findall(
        r"^\| (.*`(.*)`.*) \| (\S+) \| (.*) \|$",
        sections("docs/results.md")[""],
        re.MULTILINE,
    )
    with (ROOT / "docs" / "results.csv").open() as file:
        results = list(csv.DictReader(file))
    command = []
    for (cell, quoted, mean, spread), result in zip(rows, results, strict=True):
        assert mean == result["mean_return"]
        ends = f"{result['worst_seed']} to {result['best_seed']}"
        assert spread == ("one seed" if result["seeds"] == "1" else ends)
        if cell.startswith("the same with"):
            words = options(command + shlex.split(quoted))
        else:
            command = shlex.split(quoted)[2:]
            words = options(command)
        assert words.pop("") == [result["agent"]]
        assert words["env"] == [result["env"]]
        assert words.pop("seeds", ["1"]) == [result["seeds"]]
        assert words.pop("seed", ["0"]) == [result["first_seed"]]
        steps = steps_of(result["agent"], words)
        assert steps == int(result["steps"])
        for number, unit in re.findall(r"\((\d+)(k|M) steps\)", cell):
            assert steps == int(number) * {"k": 1_000, "M": 1_000_000}[unit]
        more = {k: v for k, v in words.items() if k not in ("env", "steps")}
        assert {"": []} | more == options(shlex.split(result["options"]))
