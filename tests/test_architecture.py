"""Rules of the code base that no type checker sees: who may import whom, and what nobody does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers import CONF, ROOT

PACKAGE = ROOT / "medpfl"
MODULES = sorted(PACKAGE.rglob("*.py"))
# What holds the truth, or judges by it.
TRUTH = (
    "medpfl.data",
    "medpfl.federated.client",
    "medpfl.metrics",
    "medpfl.report",
    "medpfl.runner",
    "medpfl.federated.simulation",
    "medpfl.source",
    "medpfl.experiment",
)
LONGEST_FILE = 450


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {name_of(path): path for path in MODULES}


def imported(path: Path) -> set[str]:
    """Return the project's modules that a file names in an import, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            module = str(node.module)
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name in PATHS}


def with_packages(name: str) -> set[str]:
    """Return a module and the packages that importing it imports first."""
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}


def reached(name: str) -> dict[str, tuple[str, ...]]:
    """Return every module that importing `name` imports, each with a way that leads there."""
    ways = {name: (name,)}
    waiting = [name]
    while waiting:
        here = waiting.pop()
        for target in sorted(imported(PATHS[here])):
            for module in with_packages(target):
                if module not in ways:
                    ways[module] = (*ways[here], module)
                    waiting.append(module)
    return ways


ATTACKER = [n for n in PATHS if n.startswith(("medpfl.attacks", "medpfl.optim"))]


@pytest.mark.parametrize("name", ATTACKER)
def test_the_attacker_cannot_reach_the_truth(name):
    for module, way in reached(name).items():
        forbidden = [t for t in TRUTH if module == t or module.startswith(f"{t}.")]
        assert not forbidden, f"{' -> '.join(way)}: the attacker must not see {forbidden[0]}"


def test_the_walk_would_find_the_truth():
    assert "medpfl.metrics.scoring" in reached("medpfl.runner")
    assert "medpfl.federated.client" in reached("medpfl.federated.simulation")


@pytest.mark.parametrize("name", [n for n in PATHS if n.startswith("medpfl.data")])
def test_data_know_no_attack(name):
    above = ("medpfl.attacks", "medpfl.federated", "medpfl.metrics", "medpfl.report")
    assert not [m for m in reached(name) if m.startswith(above)]


@pytest.mark.parametrize("name", [n for n in PATHS if n.startswith("medpfl.bounds")])
def test_bounds_know_neither_attacks_nor_data(name):
    forbidden = ("medpfl.attacks", "medpfl.optim", *TRUTH)
    assert not [m for m in reached(name) if m.startswith(forbidden)]


HEAVY = {
    "torch",
    "torchvision",
    "pandas",
    "matplotlib",
    "scipy",
    "skimage",
    "sklearn",
    "numpy",
    "PIL",
    "dp_accounting",
    "pydicom",
    "nibabel",
    "nrrd",
}
# What a mistake on the command line needs: Hydra, and what is printed.
LIGHT = (
    *("medpfl.cli", "medpfl.command.main", "medpfl.callbacks", "medpfl.report.sweep"),
    "medpfl.dp.command",
    "medpfl.inspector.command",
)


def imported_at_once(path: Path) -> set[str]:
    """Return every module that importing a file imports, but for those inside functions."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(tree(path).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{a.name}" for a in node.names}
        elif not is_left_out(node):
            waiting.extend(ast.iter_child_nodes(node))
    return found


def is_left_out(node: ast.AST) -> bool:
    """Tell what does not run as a file is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def heavy_reached(name: str) -> dict[str, str]:
    """Return the heavy packages that importing a module imports, each with who does."""
    seen, waiting, heavy = set(), [name], {}
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        for target in imported_at_once(PATHS[here]):
            if target.split(".")[0] in HEAVY:
                heavy[target] = here
            waiting.extend(module for module in with_packages(target) if module in PATHS)
    return heavy


@pytest.mark.parametrize("name", LIGHT)
def test_what_the_command_line_imports_first_is_light(name):
    assert heavy_reached(name) == {}


def test_the_walk_would_find_a_heavy_import():
    assert "torch" in heavy_reached("medpfl.runner")


def test_readers_of_volumes_wait_until_there_is_a_volume():
    assert not {"pydicom", "nibabel", "nrrd"} & {
        name.split(".")[0] for name in heavy_reached("medpfl.runner")
    }


# Rules a file keeps or breaks: each yields the lines that break it, with what to do instead.


def prints(path: Path) -> Iterator[str]:
    for call in calls(path):
        if isinstance(call.func, ast.Name) and call.func.id == "print":
            yield f"{call.lineno}: print(): use medpfl.report.console"


# Where a run or a command ends, whatever ended it.
ENDS = ("runner.py", "_entry.py", "command/jobs.py", "command/main.py")
# Decoders of pictures have no class of errors, and fail with any on damaged files.
DECODERS = ("data/images.py", "data/decoding.py")
# Someone else's training goes on, whatever becomes of its captures.
BESIDE_TRAINING = "integrations/guard.py"


def catches_everything(path: Path) -> Iterator[str]:
    if path in [PACKAGE / end for end in (*ENDS, *DECODERS, BESIDE_TRAINING)]:
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = {n.id for n in ast.walk(node.type or node) if isinstance(n, ast.Name)}
            if node.type is None or caught & {"Exception", "BaseException"}:
                yield f"{node.lineno}: a broad except: only where a run ends, and at the decoder"


def asserts_input(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Assert):
            yield f"{node.lineno}: assert: raise an error that says what to do"


def draws_globally(path: Path) -> Iterator[str]:
    draws = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}
    for call in calls(path):
        if not isinstance(call.func, ast.Attribute):
            continue
        owner, name = ast.unparse(call.func.value), call.func.attr
        keys = {keyword.arg for keyword in call.keywords}
        if owner == "torch" and name in draws and "generator" not in keys:
            yield f"{call.lineno}: torch.{name} without a generator"
        if owner == "torch" and name in ("manual_seed", "seed"):
            yield f"{call.lineno}: torch.{name} seeds everybody's stream"
        if owner in ("np.random", "numpy.random") and not (name == "default_rng" and call.args):
            yield f"{call.lineno}: numpy's global stream, or an unseeded one"


def lacks_documentation(path: Path) -> Iterator[str]:
    for node in tree(path).body:
        public = isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"
        if public and not ast.get_docstring(node):
            yield f"{node.lineno}: {node.name} has no docstring"


def is_too_long(path: Path) -> Iterator[str]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines >= LONGEST_FILE:
        yield f"{lines}: split the file, one idea each"


def names_a_machine(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if re.search(r"(?<![\w.~}])/(?:work|tmp|home|root|Users|mnt|opt|var)/|\bshared/", line):
            yield f"{number}: a folder of one machine"


def depends_on_speed(path: Path) -> Iterator[str]:
    clocks = {"sleep", "time", "monotonic", "perf_counter", "process_time"}
    # It kills at moments of time; whether it passes does not depend on them.
    if path.name == "test_resume_kills.py":
        return
    for call in calls(path):
        if ast.unparse(call.func).removeprefix("time.") in clocks:
            yield f"{call.lineno}: a clock: give the code one of the test's own"
        elif "timeout" in {keyword.arg for keyword in call.keywords}:
            yield f"{call.lineno}: a limit in seconds: pytest has one for tests that hang"


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


TESTS = sorted((ROOT / "tests").glob("*.py"))
YAML = sorted(CONF.rglob("*.yaml"))


@pytest.mark.parametrize(
    ("rule", "paths"),
    [
        (prints, MODULES),
        (catches_everything, MODULES),
        (asserts_input, MODULES),
        (draws_globally, MODULES),
        (lacks_documentation, MODULES),
        (is_too_long, [*MODULES, *TESTS, *YAML]),
        (names_a_machine, [*MODULES, *YAML]),
        (depends_on_speed, TESTS),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_no_file(rule, paths):
    assert len(paths) > 30
    offences = [f"{path.relative_to(ROOT)}:{what}" for path in paths for what in rule(path)]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (prints, "print(1)"),
        (catches_everything, "try:\n    f()\nexcept (ValueError, Exception):\n    pass"),
        (catches_everything, "try:\n    f()\nexcept:\n    pass"),
        (asserts_input, "assert x"),
        (draws_globally, "torch.rand(3)"),
        (draws_globally, "np.random.default_rng()"),
        (lacks_documentation, "def f(): ..."),
        (is_too_long, "\n" * LONGEST_FILE),
        (names_a_machine, 'open("/home/someone/x")'),
        (depends_on_speed, "time.sleep(1)"),
        (depends_on_speed, "process.communicate(timeout=60)"),
    ],
)
def test_the_rules_would_find_an_offence(rule, text, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(text, encoding="utf-8")
    assert len(list(rule(path))) == 1
