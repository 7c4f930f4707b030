"""The committed stub of the compiled module names what the module has."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import flashmoe
from flashmoe import _core


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_stub_is_fresh() -> None:
    tree = ast.parse((Path(flashmoe.__file__).parent / "_core.pyi").read_text())
    functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    assert functions | set(classes) == public(_core)
    for name, node in classes.items():
        said = {n.name for n in node.body if isinstance(n, ast.FunctionDef)} - {"__init__"}
        assert said == public(getattr(_core, name)), name


def test_stub_names_every_option() -> None:
    tree = ast.parse((Path(flashmoe.__file__).parent / "_core.pyi").read_text())
    model = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Model")
    init = next(n for n in model.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    text = inspect.getdoc(_core.Model.__init__) or ""
    for argument in init.args.kwonlyargs:
        assert f"{argument.arg}: " in text, argument.arg
