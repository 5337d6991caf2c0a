"""Language models and vectors, as commands take them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer.language.data import Pair


def language(name: str) -> tuple[Any, Any]:
    """(model, tokenizer): `smollm2`, or a folder or hub id of a causal language model of transformers.

    Raises ValueError for a name that is neither, and for files that cannot be read.
    """
    import steer

    if name == "smollm2":
        return steer.load(name)
    if not Path(name).is_dir() and "/" not in name:
        raise ValueError(f"model {name!r} is no folder and no hub id (owner/name); 'smollm2' comes with steer.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
        return AutoModelForCausalLM.from_pretrained(name).eval(), tokenizer
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the language model {name} cannot be read: {error}") from error


def pairs_of(path: Path) -> list[Pair]:
    """Pairs of a JSONL with prompt, positive and negative in each line, of a persona file, or of TruthfulQA.csv.

    Raises FileNotFoundError for no such file, and ValueError for other contents.
    """
    import json

    from steer.language.data import Pair
    from steer.language.readers import personas, truthful_qa

    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}: expected pairs, one JSON object with prompt, positive, negative a line."
        )
    if path.suffix == ".csv":
        return truthful_qa(path)
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if rows and "answer_matching_behavior" in rows[0]:
            return personas(path)
        return [Pair(row["prompt"], row["positive"], row["negative"]) for row in rows]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error!r}; expected prompt, positive and negative in every line.") from error
