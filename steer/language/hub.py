"""Vectors on the Hugging Face hub: a repository with one safetensors file and a card."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from steer.language.files import load, save
from steer.language.vectors import SteeringVector

NAME = "vector.safetensors"


def push(vector: SteeringVector, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a vector to owner/name, which is made if need be, and return the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    with TemporaryDirectory() as folder:
        save(vector, Path(folder) / NAME)
        (Path(folder) / "README.md").write_text(card(vector, repo))
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload steering vector"))


def pull(repo: str, *, revision: str | None = None, token: str | None = None) -> SteeringVector:
    """Download a vector that was pushed. Raises what huggingface_hub raises for a repository without one."""
    from huggingface_hub import hf_hub_download

    return load(hf_hub_download(repo, NAME, revision=revision, token=token))


def card(vector: SteeringVector, repo: str) -> str:
    """The model card: what the vector was made of, and how to apply it."""
    about = vector.provenance
    rows = "".join(f"| {name} | {value} |\n" for name, value in sorted(about.items()))
    sites = ", ".join(str(place) for place in vector.sites)
    return (
        "---\nlibrary_name: steer\ntags: [steering-vector]\n"
        + (f"base_model: {about['model']}\n" if "/" in about.get("model", "") else "")
        + f"---\n# {repo.rpartition('/')[2]}\n\nA steering vector at sites {sites}.\n\n```python\n"
        f'from steer.language import hub, steering\n\nvector = hub.pull("{repo}")\n'
        "with steering(model, vector, 0.1):\n    model.generate(...)\n```\n\n| made of | |\n|---|---|\n" + rows
    )
