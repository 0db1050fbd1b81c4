"""The architecture: who may import whom, where third-party packages are imported, and what the code never does."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import vit_dist
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "vit_dist"
# From the bottom up: a package imports only those before it. Modules beside the packages come first.
PACKAGES = (
    *("version", "errors", "files", "formatting"),
    "config",
    "runtime",
    "plan",
    "sizing",
    "optim",
    "models",
    "run_folder",
    "data",
    "checkpointing",
    "telemetry",
    "report",
    "inference",
    "checks",
    "export",
    "training",
    "cli",
    "__main__",
)
# A third-party package → the packages or modules that may import it.
ALLOWED = {
    "accelerate": ("runtime", "telemetry.tensorboard_run"),
    "torch.distributed": ("runtime",),
    "timm": ("models", "optim", "data.augmentation", "export"),
    "torchvision": ("data",),
    "wandb": ("telemetry.wandb_process",),
    "tensorboard": ("telemetry.tensorboard_run",),
    "rich": ("telemetry.console",),
    "matplotlib": ("report",),
    "jinja2": ("report.rendering",),
    "markupsafe": ("report",),
    "sklearn": ("data.sources.builtin",),
    "scipy": ("data.augmentation.draws",),
    "huggingface_hub": ("models.pretrained",),
    "datasets": ("data.sources.huggingface",),
    "ftfy": ("data.text.clip_bpe",),
    "tokenizers": ("data.text.tokenizer",),
    "fsspec": ("data.shards.remote",),
    "onnx": ("export.onnx_file",),
    "onnxruntime": ("export.onnx_file",),
    "onnxscript": ("export.onnx_file",),
    "open_clip": ("export.open_clip_folder",),
    "orjson": ("run_folder.metrics",),
    "pydantic": ("config",),
    "pydantic_core": ("config",),
    "yaml": ("config", "cli", "training", "report"),
    # Not in version, errors, files, formatting, config and plan, which `--help` and a report import.
    "torch": ("runtime", *PACKAGES[PACKAGES.index("plan") + 1 : -1]),
}  # fmt: skip
# Imported by torch.onnx, and by name.
NOT_IMPORTED_BY_US = {"onnxscript", "tensorboard"}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LONGEST_FILE, LONGEST_LOOP = 300, 60


class Import(NamedTuple):
    """`module` is dotted and absolute; `line` is where it stands."""

    module: str
    line: int


class Imports(ast.NodeVisitor):
    """Collects every import of a file, those inside functions too; not what only type checkers see."""

    def __init__(self) -> None:
        self.found: list[Import] = []

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(alias.name, node.lineno) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"line {node.lineno}: a relative import"
        for alias in node.names:
            self.found.append(Import(f"{node.module}.{alias.name}", node.lineno))

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
            self.found.append(Import(str(node.args[0].value), node.lineno))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)


def sources() -> list[Path]:
    """The files of the package and the scripts."""
    files = [*PACKAGE.rglob("*.py"), *(REPOSITORY / "scripts").glob("*.py")]
    assert len(files) > 20
    return sorted(files)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(path: Path) -> str:
    """data.stream for vit_dist/data/stream.py; data for its package's __init__; empty for vit_dist's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {dotted(path): path for path in sources() if PACKAGE in path.parents}


@cache
def imports(path: Path) -> list[Import]:
    visitor = Imports()
    visitor.visit(tree(path))
    return visitor.found


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of vit_dist that a file imports, with the line."""
    for module, line in imports(path):
        parts = module.split(".")
        if parts[0] == "vit_dist":
            names = (".".join(parts[1:end]) for end in (len(parts), len(parts) - 1))
            yield next(name for name in names if name in modules()), line


def graph() -> dict[str, set[str]]:
    """Module → the modules of vit_dist that it imports; __init__ files left out, which hold names alone."""
    inits = {name for name, path in modules().items() if path.name == "__init__.py"}
    return {
        name: {other for other, _ in own_imports(path)} - inits for name, path in modules().items() if name not in inits
    }


def layers(edges: dict[str, set[str]]) -> tuple[list[set[str]], dict[str, set[str]]]:
    """(modules by layer, from those that import nothing up; what is left in circles)."""
    left, found = dict(edges), []
    while ends := {name for name, others in left.items() if not others & left.keys()}:
        found.append(ends)
        left = {name: others for name, others in left.items() if name not in ends}
    return found, {name: others & left.keys() for name, others in left.items()}


def package(name: str) -> str:
    return name.split(".")[0]


def upward() -> list[str]:
    """Imports that run upwards between packages."""
    return [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in sorted(others)
        if PACKAGES.index(package(other)) > PACKAGES.index(package(name))
    ]


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(REPOSITORY)}:{line}"


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in allowed)


def test_every_package_has_its_place_in_the_order() -> None:
    assert {package(name) for name in modules()} - {""} == set(PACKAGES)


def test_a_package_imports_only_packages_below_it() -> None:
    assert upward() == []


def test_imports_never_run_in_a_circle_inside_a_package_either() -> None:
    edges = graph()
    assert edges["training.run"] >= {"training.setup", "runtime.runtime"}
    assert sum(map(len, edges.values())) > 100
    found, circles = layers(edges)
    assert circles == {}
    assert sum(map(len, found)) == len(edges)


def test_third_party_packages_are_imported_where_they_belong() -> None:
    wrong, used = [], set()
    for name, path in modules().items():
        for module, line in imports(path):
            for third, allowed in ALLOWED.items():
                if module == third or module.startswith(f"{third}."):
                    used.add(third)
                    if not within(name, allowed):
                        wrong.append(f"{where(path, line)}: imports {module}, which only {', '.join(allowed)} may")
    assert wrong == []
    assert used == ALLOWED.keys() - NOT_IMPORTED_BY_US


def test_torch_distributed_is_not_reached_by_its_attribute_either() -> None:
    wrong = [
        where(path, node.lineno)
        for path in sources()
        if not dotted_or_script(path).startswith("runtime.")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.distributed")
    ]
    assert wrong == []


def dotted_or_script(path: Path) -> str:
    return dotted(path) if PACKAGE in path.parents else path.name


def test_nothing_is_pickled() -> None:
    wrong = []
    for path in sources():
        for module, line in imports(path):
            if module.split(".")[0] in PICKLES or module in ("torch.load", "torch.save"):
                wrong.append(f"{where(path, line)}: imports {module}")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
                wrong.append(f"{where(path, node.lineno)}: {ast.unparse(node)}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                wrong.append(f"{where(path, node.value.lineno)}: allow_pickle")
    assert wrong == []


@pytest.mark.parametrize(("name", "home"), [("Config", "config.config"), ("UserError", "errors"),
                                            ("Run", "training.run"), ("train", "training.run"),
                                            ("Classifier", "inference.classifier"),
                                            ("DualEncoder", "inference.dual_encoder"),
                                            ("load", "inference.open_model")])  # fmt: skip
def test_public_names_are_imported_lazily_from_their_module(name: str, home: str) -> None:
    assert getattr(vit_dist, name) is getattr(importlib.import_module(f"vit_dist.{home}"), name)
    assert [module for module, _ in own_imports(PACKAGE / "__init__.py")] == ["version"]


def test_the_loop_is_read_on_one_screen_and_files_in_one_sitting() -> None:
    functions = {n.name: n for n in tree(PACKAGE / "training/loop.py").body if isinstance(n, ast.FunctionDef)}
    loop = functions["loop"]
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno + 1 <= LONGEST_LOOP
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in sources()}
    long = {name: length for name, length in lengths.items() if length > LONGEST_FILE}
    assert long == {}
    assert [name for name, length in lengths.items() if name.startswith("scripts/") and length > 12] == []


def test_tests_mirror_the_packages() -> None:
    folders = {path.parent.relative_to(REPOSITORY / "tests") for path in (REPOSITORY / "tests").rglob("test_*.py")}
    assert [str(folder) for folder in sorted(folders) if not (PACKAGE / folder).is_dir()] == []


def package_graph() -> dict[str, set[str]]:
    """Return package → the other packages that it imports."""
    edges: dict[str, set[str]] = {name: set() for name in PACKAGES}
    for name, others in graph().items():
        edges[package(name)] |= {package(other) for other in others} - {package(name)}
    return edges


def print_graph() -> None:
    """Print the import graph in layers, by module and by package, and the size of each package."""
    for kind, edges in (("module", graph()), ("package", package_graph())):
        found, circles = layers(edges)
        for number, names in enumerate(found):
            print(f"{kind}s of layer {number}: {' '.join(sorted(names))}")
        print(f"{len(found)} layers of {kind}s, {len(circles)} {kind}s in circles\n")
    print(f"{len(upward())} imports upwards between packages\n")
    for name in PACKAGES:
        paths = [path for module, path in modules().items() if package(module) == name and path.name != "__init__.py"]
        lines = [len(path.read_text().splitlines()) for path in paths]
        print(f"{name}: {len(paths)} modules, {sum(lines)} lines, the longest {max(lines)}")


if __name__ == "__main__":
    print_graph()
