"""What may know what: read off the source, so that the design stays the design."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("flame", "attacks", "models")
SOURCES = [
    "train.py",
    *sorted(p.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*.py")),
]
ROOMS = (  # in the order in which data flow: a room knows those before it
    "flame.data",
    "flame.geometry",
    "flame.round",
    "flame.partition",
    "attacks",
    "flame.defenses",
    "flame.engine",
    "flame.federation",
    "flame.run",
    "flame.replay",
    "flame.model",
    "flame.library",
    "flame.flower",
    "flame.report",
    "flame.arena",
)
DOORS = ("federation", "replay", "model", "library", "flower")
HYDRA_AWARE = {
    "flame/run/again.py",
    "flame/run/config.py",
    "flame/run/cores.py",
    "flame/run/compose.py",
    "flame/run/command.py",
    "flame/run/arguments.py",
    "flame/run/build.py",
    "flame/run/clean.py",
    "flame/run/experiment.py",
    "flame/run/sweep.py",
    "flame/run/estimate.py",
    "flame/arena/row.py",
    "train.py",
}
PRINTS = {
    "flame/arena/row.py",
    "flame/run/sweep.py",
    "flame/run/estimate.py",
    "flame/run/trackers/dashboard.py",
}  # beside files that are commands themselves
DRAWS = ("rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli", "poisson")
DRAWS += ("rand_like", "randn_like", "randint_like")
DRAWS_IN_PLACE = ("normal_", "uniform_", "random_", "bernoulli_", "exponential_")
LONG_FILES: set[str] = set()  # over 250 lines, with the reason
LONG_FUNCTIONS: set[str] = set()  # over 40 lines, likewise


def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


@cache  # eight tests of each file ask
def imports(path: str) -> tuple[str, ...]:
    """Full names of imported modules and members, wherever in the file."""
    found: list[str] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(found)


def names(path: str) -> Iterator[str]:
    """Every identifier and attribute that is used, not what stands in comments and strings."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]


def calls(path: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def room(module: str) -> str | None:
    """The room that a module is in; None for what is not ours, and for models, which know nothing of ours."""
    return next((name for name in ROOMS if f"{module}.".startswith(f"{name}.")), None)


@pytest.mark.parametrize("path", [path for path in SOURCES if not path.endswith("__main__.py")])
def test_a_room_knows_only_those_before_it(path: str) -> None:
    """Commands (`__main__.py`) stand above all rooms."""
    own = room(path.removesuffix(".py").replace("/", "."))
    if own is None:
        return
    later = ROOMS[ROOMS.index(own) + 1 :]
    assert not [name for name in imports(path) if room(name) in later]


def test_no_module_is_in_a_circle() -> None:
    """Whatever the import, at the top or inside a function."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in SOURCES}

    def home(name: str) -> str | None:
        return name if name in modules else next((m for m in (name.rpartition(".")[0],) if m in modules), None)

    graph = {m: {h for name in imports(path) if (h := home(name)) and h != m} for m, path in modules.items()}
    list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_at_most_ten_rooms_and_few_doors() -> None:
    """Rooms are folders; a door is one file beside them, by which somebody comes in: a command or a function."""
    entries = {path.name for path in (ROOT / "flame").iterdir()} - {"__init__.py", "__pycache__"}
    assert {name.removesuffix(".py") for name in entries} <= {name.removeprefix("flame.") for name in ROOMS}
    assert len([name for name in entries if not name.endswith(".py")]) <= 10
    assert {name for name in entries if name.endswith(".py")} <= {f"{door}.py" for door in DOORS}


@pytest.mark.parametrize("path", SOURCES)
def test_only_the_edge_knows_hydra(path: str) -> None:
    aware = {name for name in imports(path) if name.partition(".")[0] in ("hydra", "omegaconf")}
    assert not aware or path in HYDRA_AWARE, aware


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("models/")])
def test_models_know_nothing_of_ours(path: str) -> None:
    assert not [name for name in imports(path) if name.partition(".")[0] in ("flame", "attacks")]


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("flame/defenses/")])
def test_defenses_do_not_know_the_truth(path: str) -> None:
    assert not {"compromised", "Cohort", "score"} & set(names(path))
    assert not [
        name for name in imports(path) if name.startswith(("attacks", "flame.round.cohort", "flame.round.score"))
    ]


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("attacks/")])
def test_attacks_do_not_know_the_defense(path: str) -> None:
    assert not [
        name for name in imports(path) if name.startswith(("flame.defenses", "flame.round.shadow", "flame.round.score"))
    ]


@pytest.mark.parametrize("path", SOURCES)
def test_nothing_is_unpickled_or_evaluated(path: str) -> None:
    modules = {name.partition(".")[0] for name in imports(path)}
    assert not modules & {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
    for call in calls(path):
        name = ast.unparse(call.func)
        assert name not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "joblib.load"), f"{path}:{call.lineno}"
        if name == "torch.load":
            safe = [k for k in call.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
            assert safe, f"{path}:{call.lineno}: torch.load without weights_only=True"
        if name in ("np.load", "numpy.load"):
            allowed = [k for k in call.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
            assert not allowed, f"{path}:{call.lineno}"


@pytest.mark.parametrize("path", SOURCES)
def test_only_commands_print(path: str) -> None:
    assert not prints(path) or path in PRINTS or is_command(path), prints(path)


@pytest.mark.parametrize("path", SOURCES)
def test_no_global_randomness(path: str) -> None:
    """Streams are addressed. Dropout and initial weights know no stream but torch's global ones, which each job sets.

    The setting is fenced in `flame.round.seeding.addressed`.
    """
    assert not {name for name in imports(path) if name.partition(".")[0] == "random"}
    for call in calls(path):
        name, line = ast.unparse(call.func), f"{path}:{call.lineno}"
        assert not name.startswith(("np.random.", "numpy.random.")) or name.endswith("default_rng"), line
        sets = name in ("torch.manual_seed", "torch.seed") or "default_generator" in name or "cuda.manual" in name
        assert not sets or path == "flame/round/seeding.py", line
        initial = path.startswith("models/") and name.startswith("nn.init.")  # as the layers of torch.nn draw theirs
        draws = name in {f"torch.{draw}" for draw in DRAWS} or name.endswith(tuple(f".{d}" for d in DRAWS_IN_PLACE))
        if draws and not initial:
            assert any(k.arg == "generator" for k in call.keywords), line
        assert "dropout" not in name.lower() or path.startswith("models/"), line


@pytest.mark.parametrize("path", SOURCES)
def test_lengths(path: str) -> None:
    """Functions of at most 40 lines (docstring apart) and files of at most 250."""
    lines = (ROOT / path).read_text().count("\n")
    assert lines <= 250 or path in LONG_FILES, f"{path} has {lines} lines"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 40 or f"{path}:{node.name}" in LONG_FUNCTIONS, f"{path}:{node.name} has {length} lines"


def test_the_report_stays_small() -> None:
    """At most 2,200 lines in 18 files."""
    files = [path for path in SOURCES if path.startswith("flame/report/")]
    assert len(files) <= 18 and sum((ROOT / path).read_text().count("\n") for path in files) <= 2200


def test_train_is_short() -> None:
    assert sum(bool(line.strip()) for line in (ROOT / "train.py").read_text().splitlines()) < 25


def test_exceptions_are_needed() -> None:
    """A file that has left one of the lists above is taken off it."""
    assert all(prints(path) for path in PRINTS)
    assert all((ROOT / path).read_text().count("\n") > 250 for path in LONG_FILES)
    assert all(any(name.startswith(("hydra", "omegaconf")) for name in imports(path)) for path in HYDRA_AWARE)


def prints(path: str) -> list[str]:
    return [f"{path}:{call.lineno}" for call in calls(path) if ast.unparse(call.func) == "print"]


def is_command(path: str) -> bool:
    """Whether the module has an `if __name__ == "__main__"`, or is a package's `__main__`."""
    tests = (ast.unparse(node.test) for node in tree(path).body if isinstance(node, ast.If))
    return path.endswith("/__main__.py") or "__name__ == '__main__'" in tests
