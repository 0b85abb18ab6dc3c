"""The rules of the house, read from the source: who may import whom, what is documented, and how long things are."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from bestiary.core import hookspecs
from bestiary.core.component import Options
from bestiary.core.plugins import BUILTIN, discover

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("core", "plugins", "registry", "lab", "cli")
MAY_IMPORT = {
    "core": {"core"},
    "plugins": {"core"},  # and a plugin's own folder
    "registry": {"core", "registry"},
    "lab": {"core", "registry", "lab"},
    "cli": {"core", "registry", "lab", "cli", "plugins"},
}
CORE_NEEDS = {"torch", "pydantic", "pydantic_core", "pluggy"}
LONGEST_FILE, LONGEST_FUNCTION, FEW_LINES = 400, 60, 3

SOURCES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(path: Path) -> list[tuple[str, ...]]:
    """Every module that a file imports anywhere in it; ours as a path from the root, others as `("", name)`."""
    package, found = path.parts[:-1], []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [("", alias.name.partition(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(("", (node.module or "").partition(".")[0]))
        elif isinstance(node, ast.ImportFrom):
            base = (*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ()))
            found += [base] if node.module else [(*base, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_go_down_only(path):
    floor = path.parts[0]
    for target in imports(path):
        if target[0] in ("", floor) and floor != "plugins":
            continue
        own_folder = target[:2] == path.parts[:2]
        slot_of_another = target[0] == "plugins" and target[-1] == "hookspecs"
        assert not target[0] or own_folder or slot_of_another or target[0] in MAY_IMPORT[floor], f"{path} imports {'.'.join(target)}"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_code_inside_the_package_imports_it_relatively(path):
    outside = {name for empty, name in (target[:2] for target in imports(path) if target[0] == "") if not empty}
    assert not outside & {"bestiary", *FOLDERS, "tests"}


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[0] == "core"], ids=str)
def test_core_needs_torch_pydantic_and_pluggy_only(path):
    assert {target[1] for target in imports(path) if target[0] == ""} <= CORE_NEEDS | sys.stdlib_module_names


def test_kernels_are_imported_where_they_are_built():
    """Triton is imported at the top of modules called `kernels` alone, and these at nobody's else."""
    for path in SOURCES:
        if "kernels" in path.with_suffix("").parts:
            continue
        top = [node for node in parsed(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not [n for n in top if {"triton", "kernels"} & {*re.split(r"\W+", ast.unparse(n))}], f"{path} imports kernels at its top"


# The root is the package


def test_the_root_holds_only_the_packages_two_modules():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_the_listed_packages_are_the_folders_with_code():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(("bestiary", *path.parent.parts)) for path in SOURCES}
    assert sorted(listed) == sorted({"bestiary"} | folders)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES}), ids=str)
def test_every_folder_with_code_is_a_package_that_says_what_it_holds(folder):
    assert ast.get_docstring(parsed(folder / "__init__.py"))


def run(code: str, **how) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **how)


def test_importing_the_package_imports_nothing_else():
    done = run("import sys, bestiary; print([n for n in sys.modules if n.startswith(('bestiary.', 'torch', 'pydantic'))])")
    assert done.stdout.strip() == "[]", done.stderr


def test_models_are_found_resolved_and_counted_without_torch():
    done = run(
        "import sys, bestiary; m = bestiary.resolve('deepseek-v3'); bestiary.list_components()\n"
        "from bestiary.core.accounting import account; account(m); print('torch' in sys.modules)"
    )
    assert done.stdout.strip() == "False", done.stderr


def test_core_imported_under_a_bare_name_says_what_to_type():
    done = run("import core", cwd=ROOT)
    assert "ImportError: import bestiary.core, not core" in done.stderr


def test_every_public_name_exists():
    done = run("import bestiary; print(all(getattr(bestiary, name) is not None for name in bestiary.__all__))")
    assert done.stdout.strip() == "True", done.stderr


# Documentation


def hooks() -> list[tuple[str, object]]:
    modules = [hookspecs, importlib.import_module("bestiary.plugins.moe.hookspecs")]
    return [(name, getattr(module, name)) for module in modules for name in vars(module) if name.startswith("bestiary_")]


def test_every_slot_has_a_hook_with_a_docstring_and_a_built_in():
    slots = discover().slots
    assert {name.removeprefix("bestiary_") for name, _ in hooks()} == set(slots)
    assert all(hook.__doc__ for _, hook in hooks())
    assert all(any(c.origin.plugin in BUILTIN for c in slot.values()) for slot in slots.values())


def test_hooks_take_nothing():
    assert not [name for name, hook in hooks() if hook.__code__.co_argcount]


COMPONENTS = [(slot, c) for slot, components in discover().slots.items() for c in components.values()]


@pytest.mark.parametrize(("slot", "component"), COMPONENTS, ids=lambda value: getattr(value, "name", value))
def test_every_component_says_what_it_is_and_documents_its_options(slot, component):
    assert component.summary.endswith("."), f"{slot} '{component.name}' has no summary"
    for name, field in component.options.model_fields.items():
        assert field.description, f"{component.options.__name__}.{name} has no docstring"


def records(kind: type = Options):
    for inner in kind.__subclasses__():
        if inner.__module__.startswith("bestiary."):
            yield inner
        yield from records(inner)


def test_every_option_anywhere_has_a_docstring():
    for path in SOURCES:
        if path.parts[0] in ("core", "plugins") and "Options" in (ROOT / path).read_text():
            importlib.import_module(".".join(("bestiary", *path.with_suffix("").parts)))
    silent = [f"{kind.__name__}.{name}" for kind in records() for name, field in kind.model_fields.items() if not field.description]
    assert not silent


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_every_module_and_public_name_has_a_docstring(path):
    """A component's own functions are documented by the fields of `Component`, an options record by its fields.

    Outside `core` and `plugins`, which plugin authors read, a helper of a few lines may speak for itself.
    """
    tree = parsed(path)
    assert ast.get_docstring(tree) or not tree.body, f"{path} has no docstring"
    answers = ("build", "weights", "cost", "check", "storage")
    silent = []
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, *FUNCTIONS)) or node.name.startswith("_"):
            continue
        answer = path.parts[0] == "plugins" and (node.name.startswith("bestiary_") or not {*node.name.split("_")}.isdisjoint(answers))
        options = isinstance(node, ast.ClassDef) and node.name.endswith("Options")
        helper = isinstance(node, FUNCTIONS) and path.parts[0] not in ("core", "plugins") and node.end_lineno - node.lineno <= FEW_LINES
        if not (answer or options or helper or ast.get_docstring(node)):
            silent.append(f"{path}:{node.lineno} {node.name}")
    assert not silent


# Size


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_and_functions_stay_short(path):
    assert len((ROOT / path).read_text().splitlines()) <= LONGEST_FILE
    functions = [node for node in ast.walk(parsed(path)) if isinstance(node, FUNCTIONS)]
    long = [f"{node.name} at line {node.lineno}" for node in functions if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION]
    assert not long
