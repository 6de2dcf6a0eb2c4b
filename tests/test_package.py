"""Facts about the package as a whole: what importing costs, what may import what, that docstrings tell the truth."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dmlkd
from dmlkd import registry

ROOT = Path(__file__).parents[1]
MODULES = [m.name for m in pkgutil.walk_packages(dmlkd.__path__, "dmlkd.") if not m.name.endswith("__main__")]


def imported_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in out.stdout.split()}


@pytest.mark.parametrize("statement", ["import dmlkd", "import dmlkd.cli"])
def test_importing_the_package_or_the_command_line_loads_nothing_heavy(statement):
    assert not imported_by(statement) & {"lightning", "faiss", "torch", "sklearn", "pytorch_metric_learning"}


def test_the_rooms_for_own_loops_load_neither_lightning_nor_the_trainer():
    loaded = imported_by("from dmlkd import EmbeddingModel, Objective, evaluate; import dmlkd.distill")
    assert "torch" in loaded
    assert not loaded & {"lightning", "pytorch_lightning", "faiss"}


def test_rooms_import_only_what_they_may():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", dmlkd.__all__)
def test_every_public_name_is_there(name):
    assert getattr(dmlkd, name) is not None
    assert name in dir(dmlkd)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Objectiv'"):
        dmlkd.Objectiv  # noqa: B018


def documented() -> list[tuple[str, object]]:
    found = {}
    for module in map(importlib.import_module, MODULES):
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(thing):
                found[f"{module.__name__}.{name}"] = thing
                for method_name, method in vars(thing).items():
                    if inspect.isfunction(method) and not method_name.startswith("_"):
                        found[f"{module.__name__}.{name}.{method_name}"] = method
            elif inspect.isfunction(thing):
                found[f"{module.__name__}.{name}"] = thing
    return [(name, thing) for name, thing in found.items() if "Args:" in (thing.__doc__ or "")]


@pytest.mark.parametrize(("name", "thing"), documented(), ids=lambda value: value if isinstance(value, str) else "")
def test_documented_arguments_are_the_real_ones(name, thing):
    section = inspect.getdoc(thing).split("Args:")[1]
    section = re.split(r"\n(?=\S)", section)[0]
    documented = re.findall(r"^    (\w+):", section, flags=re.MULTILINE)
    real = [p for p in inspect.signature(thing).parameters if p not in ("self", "args", "kwargs")]
    if "arguments" in real and "arguments" not in documented:
        real.remove("arguments")
    assert documented == real


@pytest.mark.parametrize(
    "target",
    [
        *(entry.reader for entry in registry.DATA.values()),
        *(entry.method for entry in registry.METHODS.values()),
        *registry.TEACHERS.values(),
        *registry.SCHEDULES.values(),
        *registry.TRANSFORMS.values(),
    ],
)
def test_every_registered_name_stands_for_something(target):
    assert callable(registry.load(target))


def test_every_method_names_a_registered_teacher_and_schedule():
    for entry in registry.METHODS.values():
        assert entry.teacher is None or entry.teacher in registry.TEACHERS
        assert entry.schedule in registry.SCHEDULES
