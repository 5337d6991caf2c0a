"""`kernels/` is installed as steer_kernels, shadows nobody's `kernels`, and ships whole."""

import os
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_checkout_does_not_shadow_the_kernels_of_hugging_face(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("__version__ = '0.9.0'")
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]; import kernels; print(kernels.__version__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout.strip() == "0.9.0", child.stderr


def test_every_folder_with_code_is_a_package():
    """`find_packages` leaves out a folder without __init__.py, and the wheel would lack it."""
    folders = {path.parent for path in (ROOT / "steer").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_no_distribution_claims_the_name_kernels():
    assert "steer" not in packages_distributions().get("kernels", [])


def test_the_benchmark_says_that_it_needs_a_gpu():
    command = [sys.executable, "-m", "benchmarks.kernels"]
    without = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.run(command, capture_output=True, text=True, env=without, cwd=ROOT)
    assert child.stdout.strip() == "no GPU: not run", child.stderr


@pytest.mark.skipif("kernels" not in packages_distributions(), reason="needs `pip install kernels`")
def test_the_kernels_of_hugging_face_work_beside_ours():
    code = "import kernels, steer_kernels.adain as ours; print(kernels.__version__, kernels.__file__, ours.__file__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    number, theirs, ours = child.stdout.split()
    assert number == version("kernels"), child.stderr
    assert Path(theirs).parent != Path(ours).parent == ROOT / "kernels"
