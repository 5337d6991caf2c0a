"""Rules of the house that no single part can keep: who imports whom, what an import costs, how long a file may be."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / name for name in ("steer", "kernels", "benchmarks", "tests")]
CODE = [path for folder in FOLDERS for path in sorted(folder.rglob("*.py"))]
LIBRARY = [path for path in CODE if path.is_relative_to(ROOT / "steer") or path.is_relative_to(ROOT / "kernels")]

WING, REST = "steer.diffusion", ("steer",)
PARTS = (f"{WING}.controllers", f"{WING}.pipelines", f"{WING}.loop")
# importer -> (what of ours it must not import, exceptions); the longest matching importer of each row applies
FORBIDDEN = {
    "steer_kernels": (REST, ()),
    "steer.pick": ((*REST, "steer_kernels"), ()),
    "steer.plan": ((*REST, "steer_kernels"), ("steer.pick",)),
    "steer.zoo": ((*REST, "steer_kernels"), ("steer.zoo", "steer.transfer")),
    "steer.transfer": ((*REST, "steer_kernels"), ("steer.transfer", "steer.zoo")),
    **{f"steer.transfer.{part}": (("steer.zoo",), ()) for part in ("statistics", "layers", "losses", "net")},
    "steer.transfer.prediction": (("steer.zoo",), ()),
    "steer.rewards": (REST, ("steer.rewards", "steer.zoo")),
    f"{WING}.ledger": (REST, ()),
    f"{WING}.noise": (REST, ()),
    f"{WING}.state": (REST, (f"{WING}.ledger", f"{WING}.noise")),
    f"{WING}.control": (REST, (f"{WING}.state",)),
    f"{WING}.solve": (PARTS, ()),
    f"{WING}.denoise": (PARTS, ()),
    f"{WING}.schedule": (PARTS, ()),
    f"{WING}.attention": (PARTS, ()),
    f"{WING}.loop": (PARTS[:2], ()),
    f"{WING}.controllers": (PARTS[1:], ()),
    f"{WING}.pipelines": (PARTS[:1], ()),
    WING: (("steer.language", "steer.training", "steer.measure", "steer.compare", "steer.bench"), ()),
    "steer.language": ((WING, "steer.training", "steer.measure", "steer.compare"), ()),
    "steer.training": ((f"{WING}.controllers", "steer.language"), ()),
    "steer.training.methods": ((f"{WING}.controllers",), ()),
    "steer.training.text": ((f"{WING}.controllers",), ()),
    "steer": (("steer.cli", "benchmarks"), ("steer.cli",)),
}
# importer -> the parts of it that its row does not bind
FREE = {"steer": ("steer.cli",), "steer.training": ("steer.training.text",)}


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("steer_kernels", *parts[1:]) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, those for type checkers left out: they never run."""
    package = module(path).split(".") if path.name == "__init__.py" else module(path).split(".")[:-1]
    tree = ast.parse(path.read_text())
    typing = {id(n) for block in ast.walk(tree) if is_typing(block) for child in block.body for n in ast.walk(child)}
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("importer", FORBIDDEN)
def test_dependencies_point_one_way(importer):
    forbidden, allowed = FORBIDDEN[importer]
    free = FREE.get(importer, ())
    paths = [path for path in LIBRARY if inside(module(path), (importer,)) and not inside(module(path), free)]
    wrong = [
        f"{module(path)} imports {name}"
        for path in paths
        for name in imports(path)
        if inside(name, forbidden) and not inside(name, allowed)
    ]
    assert not wrong, wrong


def test_the_rules_name_what_is_there():
    """A renamed file must not slip out of its rule."""
    known = {module(path) for path in LIBRARY}
    missing = [name for name in FORBIDDEN if name not in known and not any(inside(k, (name,)) for k in known)]
    assert not missing


def test_imports_are_read(tmp_path, monkeypatch):
    """The reader sees relative, nested and plain imports, and passes over those for type checkers."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "steer" / "zoo" / "build" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from ..data import STYLES\nfrom . import fit\nimport steer.pick\n"
        "if TYPE_CHECKING:\n    from steer.cli import main\ndef f():\n    from steer import rewards\n"
    )
    assert set(imports(file)) == {"steer.zoo.data.STYLES", "steer.zoo.build.fit", "steer.pick", "steer.rewards"}


HEAVY = ("diffusers", "transformers", "open_clip", "captum", "peft", "matplotlib", "scipy", "torchvision")
PROBE = """
import sys, time
import torch
began = time.process_time()
import steer
print(time.process_time() - began, *(m for m in {heavy} if m in sys.modules))
"""


def imported() -> tuple[float, list[str]]:
    """What `import steer` adds to torch in a fresh interpreter: seconds of its processor, and heavy libraries."""
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY)]
    seconds, *brought = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    return float(seconds), brought


def test_import_is_light():
    """Median of three runs; processor time, since a busy machine stretches the other kind."""
    runs = [imported() for _ in range(3)]
    assert [brought for _, brought in runs] == [[], [], []]
    assert statistics.median(seconds for seconds, _ in runs) < 0.3


def test_files_are_short():
    lines = {path: len(path.read_text().splitlines()) for path in CODE}
    assert {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > 350} == {}
    assert statistics.median(lines.values()) <= 120


def test_nothing_is_unpickled_and_no_remote_code_is_trusted():
    unsafe = r"^\s*(?:import|from) pickle|pickle\.load|torch\.load\((?!.*weights_only=True)|trust_remote_code=True"
    loads, here = re.compile(unsafe, re.M), Path(__file__)
    assert [str(path.relative_to(ROOT)) for path in CODE if path != here and loads.search(path.read_text())] == []


def test_version_is_that_of_the_project():
    import steer

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert steer.__version__ in (declared, "0+unknown")
