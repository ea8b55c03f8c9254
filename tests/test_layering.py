"""Who may import whom, unique names, and what no module may contain; read from the source, nothing is imported."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("scenes", "minmax", "media", "darkening")
TASKS = ("classification", "segmentation", "visual-place-recognition", "low-light-action-recognition")
SCRIPTS = {"train_day", "train_darkener", "train", "test"}


def sources_of(folder):
    return sorted((REPOSITORY / folder).rglob("*.py"))


PROGRAMS = ("demo", "reproduce")  # at the top; each starts the scripts of a task
SOURCES = [file for folder in (*PACKAGES, "reproduction", *TASKS) for file in sources_of(folder)]
SOURCES += [REPOSITORY / f"{name}.py" for name in PROGRAMS]
TREES = {file.relative_to(REPOSITORY).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in SOURCES}
MODULES_OF = {task: {file.stem for file in sources_of(task)} for task in TASKS}
OURS = {*PACKAGES, *PROGRAMS, "reproduction", "benchmarks", "tests"}.union(*MODULES_OF.values())


def imported_by(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module.split(".")[0]


def allowed_for(name):
    folder = name.split("/")[0]
    if folder in TASKS:
        return {*PACKAGES, *MODULES_OF[folder]}
    below = {"scenes": {"scenes"}, "minmax": {"minmax"}, "media": {"media", "minmax"}}
    below |= dict.fromkeys(("reproduction", "reproduce.py"), {*PACKAGES, "reproduction"})
    return below.get(folder, set(PACKAGES))


@pytest.mark.parametrize("name", TREES)
def test_a_module_imports_only_the_layers_below_it(name):
    found = set(imported_by(TREES[name]))
    assert "." not in found, "relative imports hide the layer"
    assert found & OURS <= allowed_for(name)


def test_every_layer_is_there():
    folders = {name.split("/")[0] for name in TREES}
    assert {*PACKAGES, "classification", "demo.py", "reproduce.py"} <= folders


def test_every_program_at_the_top_is_checked():
    found = {file.stem for file in REPOSITORY.glob("*.py")}
    assert found == set(PROGRAMS)
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (checked,) = re.findall(r"mypy (darkening media minmax scenes reproduction .*)", makefile)
    assert {f"{name}.py" for name in found} <= set(checked.split())


def test_module_names_are_unique_in_the_repository():
    names = Counter(Path(name).stem for name in TREES)
    assert {name for name, count in names.items() if count > 1} <= SCRIPTS | {"__init__"}


def test_no_module_shadows_the_standard_library_or_a_dependency():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    distributions = {re.match(r"[\w.-]+", line)[0].lower() for line in declared}
    dependencies = {
        module
        for module, providers in importlib.metadata.packages_distributions().items()
        if distributions.intersection(provider.lower() for provider in providers)
    }
    assert {"torch", "cv2", "PIL"} <= dependencies
    taken = dependencies | set(sys.stdlib_module_names)
    names = {Path(name).stem for name in TREES} | set(PACKAGES)
    assert names & taken <= {"test", "__init__"}


def is_call_of(node, *names):
    """A call of a bare name or of an attribute, as `print` or `.cuda`."""
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    return (
        isinstance(called, ast.Name)
        and called.id in names
        or (isinstance(called, ast.Attribute) and "." + called.attr in names)
    )


FORBIDDEN = {  # by an example, what the code may not hold
    "from os.path import *": r"import \*",
    "try:\n    f()\nexcept:\n    g()": r"except:",
    "network.cuda()": r"\.cuda\(",
    "os.chdir('x')": r"\bos\.chdir\b",
    "from os import chdir": r"from os import .*\bchdir\b",
    "sys.path.insert(0, 'x')": r"\bsys\.path\b",
    "from sys import path": r"from sys import .*\bpath\b",
    "eval('x')": r"(?<![.\w])eval\(",
    "exec('x')": r"(?<![.\w])exec\(",
    "os.system('x')": r"\bos\.system\b",
    "run('x', shell=True)": r"\bshell=True",
    "load('x', weights_only=False)": r"\bweights_only=False",
    "pickle.load(file)": r"\bpickle\.loads?\b",
    "environ['CUDA_VISIBLE_DEVICES'] = '0'": "CUDA_VISIBLE_DEVICES",
}


@pytest.mark.parametrize("snippet", FORBIDDEN)
def test_what_no_module_may_contain(snippet):
    forbidden = re.compile(FORBIDDEN[snippet])
    assert forbidden.search(ast.unparse(ast.parse(snippet))), "the rule does not see its own example"
    # Unparsed, code has no comments and one way of writing.
    assert not [name for name, tree in TREES.items() if forbidden.search(ast.unparse(tree))]


def in_packages():
    return {name: tree for name, tree in TREES.items() if name.split("/")[0] in PACKAGES}


def test_packages_do_not_print():
    assert is_call_of(ast.parse("print(1)").body[0].value, "print")
    assert not [name for name, tree in in_packages().items() for node in ast.walk(tree) if is_call_of(node, "print")]


HARMLESS = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)


def side_effects(tree):
    """Lines of statements that do something to the world when the module is imported."""
    own = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    for node in tree.body:
        if isinstance(node, HARMLESS):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        # Completing a private object of the module, as `_converter.register(...)`, is still its definition.
        called = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
        owner = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
        if owner.startswith("_") and owner in own:
            continue
        yield node.lineno


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('"""Text."""\nimport os\nx = 1\nif __name__ == "__main__":\n    f()', []),
        ("_registry = {}\n_registry.update(a=1)", []),
        ("import torch\ntorch.manual_seed(0)", [2]),
        ("f()", [1]),
        ("for i in range(3): f(i)", [1]),
        ("if x: f()", [1]),
        ("import os\nos.environ['A'] = '1'", []),  # an assignment; rules above see the dangerous ones
    ],
)
def test_side_effects_are_recognised(source, lines):
    assert list(side_effects(ast.parse(source))) == lines


@pytest.mark.parametrize("name", TREES)
def test_importing_a_module_does_nothing_else(name):
    assert not list(side_effects(TREES[name]))
