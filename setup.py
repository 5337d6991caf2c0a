"""What pyproject.toml cannot say: discovered packages together with one that is installed under another name.

`kernels/` is imported as `steer_kernels`. It has no __init__.py, so that in a checkout it never shadows Hugging Face's
`kernels`, and is therefore listed here and not found.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["steer", "steer.*"]), "steer_kernels"],
    package_dir={"steer_kernels": "kernels"},
)
