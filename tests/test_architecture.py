"""The rules between the rooms of the project, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tunejury", "alignment")
SCRIPTS = ("recipes", "benchmarks")
SOURCES = sorted(path for room in (*PACKAGES, *SCRIPTS, "tests") for path in (ROOT / room).rglob("*.py"))
LIBRARY = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in PACKAGES]

# the rooms each room may import from, besides itself
MAY_IMPORT = {
    "tunejury": set(),
    "alignment": set(),
    "recipes": {"tunejury", "alignment"},
    "benchmarks": {"tunejury", "alignment"},
    "tests": {"tunejury", "alignment"},
}
# calls that open a checkpoint or fetch one
READERS = {"load_file", "safe_open", "from_pretrained", "hf_hub_download", "snapshot_download", "unsafe_load"}
MAY_READ_CHECKPOINTS = {
    "tunejury": ("tunejury/checkpoints.py",),
    "alignment": ("alignment/lora.py", "alignment/tensors.py", "alignment/backbones/"),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Absolute names of imported modules, wherever in the file the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute, else what can be said of it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def calls(tree: ast.AST) -> Iterator[str]:
    return (dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_the_rules_are_read_from_real_files() -> None:
    assert {"tunejury/model.py", "alignment/__init__.py", "tests/test_architecture.py"} <= {name_of(p) for p in SOURCES}
    assert "torch" in set(imported_modules(tree_of(ROOT / "tunejury/model.py")))
    assert "load_file" in set(calls(tree_of(ROOT / "tunejury/checkpoints.py")))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    """Recipes and benchmarks join the two packages, which do not know each other; nothing imports a script."""
    room = room_of(path)
    rooms = {module.split(".")[0] for module in imported_modules(tree_of(path))} & set(MAY_IMPORT)
    forbidden = rooms - {room} - MAY_IMPORT[room]
    assert not forbidden, f"{name_of(path)} imports {forbidden}"
    assert room not in SCRIPTS or room not in rooms, f"{name_of(path)} imports {room} as a package, which it is not"


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_checkpoints_are_read_in_one_place_only(path: Path) -> None:
    names = list(calls(tree_of(path)))
    assert not any(name.split(".")[0] in {"pickle", "marshal", "joblib"} for name in names)
    if name_of(path).startswith(MAY_READ_CHECKPOINTS[room_of(path)]):
        return
    readers = [name for name in names if name.split(".")[-1] in READERS or name == "torch.load"]
    assert not readers, f"{name_of(path)} calls {readers}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_torch_load_never_executes_what_it_reads(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and dotted(node.func) == "torch.load":
            safe = [keyword.value for keyword in node.keywords if keyword.arg == "weights_only"]
            assert len(safe) == 1 and isinstance(safe[0], ast.Constant) and safe[0].value is True, name_of(path)


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_packages_do_not_print(path: Path) -> None:
    assert "print" not in set(calls(tree_of(path)))


@pytest.mark.parametrize("path", [path for path in SOURCES if room_of(path) != "tests"], ids=name_of)
def test_nobody_reaches_into_another_module(path: Path) -> None:
    """No attribute of an imported module or class is assigned, and the import path is left alone."""
    tree = tree_of(path)
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imported |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Attribute):
                assert dotted(target).split(".")[0] not in imported, (
                    f"{name_of(path)}:{node.lineno} assigns {dotted(target)}"
                )
    assert not {name for name in calls(tree) if name.startswith("sys.path.") or name == "setattr"}, name_of(path)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_is_light(package: str) -> None:
    """Neither big library is imported, nor is torch before something of the package is used."""
    program = (
        f"import sys, {package}\n"
        "heavy = {'torch', 'transformers', 'diffusers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_judge_needs_neither_transformers_nor_diffusers() -> None:
    program = (
        "import sys, tunejury, tunejury.loading, tunejury.scoring\n"
        "tunejury.load_reward, tunejury.RewardModel, tunejury.load_audio\n"
        "heavy = {'transformers', 'diffusers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package: str) -> None:
    program = (
        f"import {package} as package\n"
        "for name in package.__all__:\n"
        "    getattr(package, name)\n"
        "    assert name in dir(package)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
