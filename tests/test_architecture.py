"""The house: who may import whom, where third-party packages live, and what the code never does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import vit_dist
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "vit_dist"
FLOORS = {
    0: ["config", "catalog", "validation", "values", "yaml_files", "plan", "state", "choosing"],
    1: ["runtime", "launch", "locking", "journal", "placing", "telemetry", "predictions", "progress", "trackers",
        "console", "answers", "losses", "optimizers", "schedules", "averaging",
        "models", "models.vit", "models.build", "models.pretrained",
        "data", "data.datasets", "data.device", "data.draws", "data.sources", "data.stream", "data.transforms"],
    2: ["update", "evaluation", "checkpoint", "resume", "trained", "teacher",
        "report", "report.record", "report.drawing", "report.curves", "report.grids", "report.html", "report.page",
        "report.measures", "report.comparison"],
    3: ["session", "announcement", "assembly", "summary", "loop"],
    4: ["dry_run", "scoring", "prediction",
        "export", "export.beside", "export.card", "export.onnx_file", "export.timm_folder"],
    5: ["cli", "flags", "arguments", "__main__"],
}  # fmt: skip
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
MODELS, DATA = (
    ("models.vit", "models.build", "models.pretrained"),
    tuple(room for room in FLOOR if room.startswith("data")),
)
# A package → the only rooms that may import it.
ROOMS_OF = {
    "jsonargparse": ("flags",),
    "accelerate": ("runtime",),
    "torch.distributed": ("runtime",),
    "timm": (*MODELS, "optimizers", "data.transforms", "export.timm_folder"),
    "torchvision": DATA,
    "wandb": ("trackers",),
    "tensorboard": ("trackers",),
    "rich": ("console",),
    "matplotlib": ("report.drawing", "report.curves", "report.grids"),
    "sklearn": ("data.datasets",),
    "scipy": ("data.draws",),
    "huggingface_hub": ("models.pretrained",),
    "onnx": ("export.onnx_file",),
    "onnxruntime": ("export.onnx_file",),
    "onnxscript": ("export.onnx_file",),
    "orjson": ("journal",),
    "yaml": ("yaml_files", "flags", "arguments", "assembly", "report.page"),
    "torch": tuple(room for room in FLOOR if room not in FLOORS[0]),
}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LONGEST_FILE, LONGEST_LOOP = 300, 60


class Import(NamedTuple):
    """`module` is dotted and absolute; `line` is where it stands."""

    module: str
    line: int


class Imports(ast.NodeVisitor):
    """Every import of a file, those inside functions too; not what only type checkers see."""

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


def room(path: Path) -> str:
    """data.stream for vit_dist/data/stream.py; empty for the package's own __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rooms() -> dict[str, Path]:
    return {room(path): path for path in sources() if PACKAGE in path.parents}


def imports(path: Path) -> list[Import]:
    visitor = Imports()
    visitor.visit(tree(path))
    return visitor.found


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    """The rooms that a file imports; the package's face itself is not one."""
    known = rooms()
    for module, line in imports(path):
        parts = module.split(".")
        if parts[0] != "vit_dist":
            continue
        named = next((name for end in (len(parts), -1) if (name := ".".join(parts[1:end])) in known and name), None)
        if named is not None:
            yield named, line
        else:
            assert parts[1:] == ["__version__"], f"{path}:{line}: {module} leaves a room through the package's face"


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(REPOSITORY)}:{line}"


def test_every_room_has_a_floor() -> None:
    assert sorted(rooms()) == sorted(["", *FLOOR])


def test_a_room_imports_its_own_floor_or_below() -> None:
    wrong = [
        f"{where(path, line)}: floor {FLOOR[name]} imports {other} on floor {FLOOR[other]}"
        for name, path in rooms().items()
        if name
        for other, line in own_imports(path)
        if FLOOR[other] > FLOOR[name]
    ]
    assert wrong == []


def test_imports_never_run_in_a_circle() -> None:
    ahead = {name: {other for other, _ in own_imports(path)} for name, path in rooms().items() if name}
    assert ahead["loop"] >= {"checkpoint", "session", "runtime"}
    assert sum(map(len, ahead.values())) > 50
    while True:
        ends = {name for name, others in ahead.items() if not others & ahead.keys()}
        if not ends:
            break
        ahead = {name: others for name, others in ahead.items() if name not in ends}
    assert {name: sorted(others & ahead.keys()) for name, others in ahead.items()} == {}


def test_third_party_packages_keep_to_their_rooms() -> None:
    wrong, used = [], set()
    for name, path in rooms().items():
        for module, line in imports(path):
            for package, allowed in ROOMS_OF.items():
                if module == package or module.startswith(f"{package}."):
                    used.add(package)
                    if name not in allowed:
                        wrong.append(f"{where(path, line)}: imports {module}, which only {', '.join(allowed)} may")
    assert wrong == []
    # onnxscript is looked for there, and imported by torch.onnx; tensorboard is asked for by its name.
    assert used == ROOMS_OF.keys() - {"tensorboard", "onnxscript"}


def test_accelerate_is_read_for_its_version_alone_outside_runtime() -> None:
    for path in (PACKAGE / "session.py", PACKAGE / "assembly.py"):
        used = {
            node.attr
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "accelerate"
        }
        assert used <= {"__version__"}, path
        assert {module for module, _ in imports(path) if module.startswith("accelerate")} <= {"accelerate"}, path


def test_torch_distributed_is_not_reached_by_its_attribute_either() -> None:
    wrong = [
        where(path, node.lineno)
        for path in sources()
        if path != PACKAGE / "runtime.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.distributed")
    ]
    assert wrong == []


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


def test_no_public_name_shares_the_name_of_a_room_beside_it() -> None:
    assert not FLOOR.keys() & set(vit_dist.__all__)
    clashes = [
        f"{name}.{node.name}"
        for name, path in rooms().items()
        for node in tree(path).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (path.parent / f"{node.name}.py").exists()
    ]
    # `loop` is not part of the package's face; `train` is.
    assert clashes == ["loop.loop"]


def test_the_packages_face_opens_its_rooms_lazily() -> None:
    from vit_dist import loop
    from vit_dist.config.config import config

    assert [getattr(vit_dist, name) for name in ("Config", "UserError", "Run", "train")] == [
        config.Config,
        config.UserError,
        loop.Run,
        loop.train,
    ]
    assert list(own_imports(PACKAGE / "__init__.py")) == []


def test_the_loop_is_read_on_one_screen_and_files_in_one_sitting() -> None:
    functions = {node.name: node for node in tree(PACKAGE / "loop.py").body if isinstance(node, ast.FunctionDef)}
    loop = functions["loop"]
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno + 1 <= LONGEST_LOOP
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in sources()}
    long = {name: length for name, length in lengths.items() if length > LONGEST_FILE}
    assert long == {}
    assert [name for name, length in lengths.items() if name.startswith("scripts/") and length > 12] == []
