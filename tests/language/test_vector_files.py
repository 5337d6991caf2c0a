"""Vectors as files: what is written comes back, equal vectors are equal bytes, and what others wrote is read."""

import json
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from steer.language import Site, SteeringVector, hub, steering
from steer.language.edits import Add
from steer.language.files import absolute, load, save, to_lm_eval

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install 'steer[language]'")

ABOUT = {"model": "owner/name", "method": "mean", "architecture": "llama", "data": "0123"}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vector(sites=(1, 2), width=32, norms=True):
    directions = {place: random(width, seed=k) for k, place in enumerate(sites)}
    return SteeringVector(directions, {place: 3.25 + k / 3 for k, place in enumerate(sites)} if norms else {}, ABOUT)


def same(a: SteeringVector, b: SteeringVector):
    assert dict(a.norms) == dict(b.norms)
    assert dict(a.provenance) == dict(b.provenance)
    assert set(a.sites) == set(b.sites)
    assert all(torch.equal(a.directions[place], b.directions[place]) for place in a.sites)


@pytest.mark.parametrize("sites", [(0, "2.heads", "1.mlp", -1), (5,)])
def test_safetensors_hold_all_that_a_vector_knows(tmp_path, sites):
    same(load(save(vector(sites), tmp_path / "new" / "v.safetensors")), vector(sites))


@pytest.mark.parametrize("norms", [True, False])
def test_a_control_vector_comes_back(tmp_path, norms):
    same(load(save(vector((3, 1, 12), norms=norms), tmp_path / "v.gguf")), vector((3, 1, 12), norms=norms))


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_equal_vectors_are_equal_bytes(tmp_path, suffix):
    """Also in another order, and again: metadata of several entries would come in any order."""
    first = vector((1, 2, 3))
    turned = SteeringVector(*(dict(reversed(list(part.items()))) for part in (first.directions, first.norms, ABOUT)))
    paths = [save(v, tmp_path / f"{k}.{suffix}") for k, v in enumerate([first, turned] * 4)]
    assert len({path.read_bytes() for path in paths}) == 1
    assert save(2 * first, tmp_path / f"v.{suffix}").read_bytes() != paths[0].read_bytes()


def test_a_control_vector_is_what_llama_cpp_and_repeng_ask_for(tmp_path):
    """llama.cpp: every tensor float32 with one axis, of one width, direction.N with N > 0. repeng: a model_hint too."""
    reader = gguf.GGUFReader(save(vector((12, 1)), tmp_path / "v.gguf"))
    read = {
        name: bytes(reader.get_field(name).parts[-1]) for name in ("general.architecture", "controlvector.model_hint")
    }
    assert read == {"general.architecture": b"controlvector", "controlvector.model_hint": b"llama"}
    assert int(reader.get_field("controlvector.layer_count").parts[-1][0]) == 2
    tensors = {t.name: t for t in reader.tensors}
    assert list(tensors) == ["direction.1", "direction.12"]
    assert all(t.tensor_type == gguf.GGMLQuantizationType.F32 and list(t.shape) == [32] for t in tensors.values())
    torch.testing.assert_close(torch.tensor(tensors["direction.12"].data), random(32), atol=0, rtol=0)


@pytest.mark.parametrize("sites", [(0, 1), (-1,), ("1.heads",), ("2.mlp", 2)])
def test_what_a_control_vector_cannot_hold_is_said(tmp_path, sites):
    with pytest.raises(ValueError, match="outputs of blocks from 1 on"):
        save(vector(sites), tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


def foreign_gguf(path: Path, architecture="controlvector", name="direction.7"):
    """As repeng writes it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", "mistral")
    writer.add_uint32(f"{architecture}.layer_count", 1)
    writer.add_tensor(name, random(8).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_control_vector_of_repeng_is_read(tmp_path):
    found = load(foreign_gguf(tmp_path / "v.gguf"))
    assert (found.sites, dict(found.norms), found.provenance["architecture"]) == ((Site(7),), {}, "mistral")
    torch.testing.assert_close(found.directions[Site(7)], random(8), atol=0, rtol=0)


DIRECTIONS = {3: random(8, seed=3), 5: random(8, seed=5)}
FOREIGN = {
    "CAA": ("vec_layer_13_Llama-2-7b-chat-hf.pt", random(8), {Site(13): random(8)}),
    "by layer": ("v.pth", DIRECTIONS, {Site(k): v for k, v in DIRECTIONS.items()}),
    "steering-vectors": (
        "v.pt",
        {"layer_activations": DIRECTIONS, "layer_type": "self_attn"},
        {Site(k, "attention"): v for k, v in DIRECTIONS.items()},
    ),
    "rows": ("v.pt", {"layers.3": random(1, 8)}, {Site(3): random(8)}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_tensors_of_others_are_read(tmp_path, kind):
    name, content, wanted = FOREIGN[kind]
    torch.save(content, tmp_path / name)
    found = load(tmp_path / name)
    assert set(found.sites) == set(wanted)
    assert all(torch.equal(found.directions[place], v) for place, v in wanted.items())


def test_a_direction_alone_needs_a_layer(tmp_path):
    torch.save(random(8), tmp_path / "v.pt")
    assert load(tmp_path / "v.pt", layer=4).sites == (Site(4),)
    with pytest.raises(ValueError, match=r"layer=\.\.\."):
        load(tmp_path / "v.pt")


@pytest.mark.parametrize("names", [("3", "5"), ("layer.3", "layer.5"), ("direction_3", "direction_5")])
def test_safetensors_of_others_are_read(tmp_path, names):
    save_file(dict(zip(names, DIRECTIONS.values())), tmp_path / "v.safetensors")
    found = load(tmp_path / "v.safetensors")
    assert found.sites == (Site(3), Site(5))
    assert torch.equal(found.directions[Site(5)], DIRECTIONS[5])


def svec(path: Path, **content):
    path.write_text(json.dumps({"model_type": "llama", **content}))
    return path


def test_files_of_aisteer360_are_read(tmp_path):
    """(1, width) for each layer, the old (width,), and of ITI (heads, width of a head)."""
    found = load(svec(tmp_path / "v.svec", directions={"3": [[1.0, 2.0]], "4": [3.0, 4.0]}))
    assert {place: v.tolist() for place, v in found.directions.items()} == {Site(3): [1, 2], Site(4): [3, 4]}
    heads = load(svec(tmp_path / "h.svec", directions={"3": [[1.0, 2.0], [0.0, 0.0]]}, num_heads=2, head_dim=2))
    assert heads.directions[Site(3, "heads")].tolist() == [1, 2, 0, 0]


class Code:
    """Runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path):
    torch.save(Code(tmp_path / "ran"), tmp_path / "v.pt")
    with pytest.raises(ValueError, match="layer_activations"):
        load(tmp_path / "v.pt")
    assert not (tmp_path / "ran").exists()
    assert b"touch" in (tmp_path / "v.pt").read_bytes()  # the file would have run it


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "no.gguf", "no file"),
        (lambda p: svec(p / "v.json"), r"v\.json: expected a file that ends in"),
        (lambda p: svec(p / "v.gguf"), "no GGUF"),
        (lambda p: svec(p / "v.safetensors"), "no safetensors"),
        (lambda p: svec(p / "v.pt"), "more than tensors"),
        (lambda p: svec(p / "v.svec"), r"no \.svec"),
        (lambda p: svec(p / "v.svec", directions={"3": [[1.0], [2.0]]}), r"\{3: \(2, 1\)\}"),
        (lambda p: foreign_gguf(p / "v.gguf", architecture="llama"), "of a 'llama'"),
        (lambda p: foreign_gguf(p / "v.gguf", name="token_embd.weight"), r"direction\.N"),
        (lambda p: save_file({"weight": random(8)}, p / "v.safetensors") or p / "v.safetensors", "'weight'"),
        (lambda p: torch.save({3: random(2, 8)}, p / "v.pt") or p / "v.pt", "one direction"),
        (lambda p: torch.save([random(8)], p / "v.pt") or p / "v.pt", "holds list"),
        (lambda p: torch.save({"layer_activations": {}, "layer_type": "x"}, p / "v.pt") or p / "v.pt", "'x'"),
    ],
)
def test_what_is_no_vector_is_said(tmp_path, make, says):
    path = make(tmp_path)
    with pytest.raises(ValueError, match=says):
        load(path)


def test_a_missing_package_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"steer\[language\]"):
        save(vector(), tmp_path / "v.gguf")


def test_a_layer_that_is_not_needed_is_said(tmp_path):
    with pytest.raises(ValueError, match="layer=3"):
        load(save(vector(), tmp_path / "v.gguf"), layer=3)
    torch.save(DIRECTIONS, tmp_path / "v.pt")
    with pytest.raises(ValueError, match="layer=3"):
        load(tmp_path / "v.pt", layer=3)


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = save(vector(), tmp_path / "v.gguf")
    before = path.read_bytes()

    def fails(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fails)
    with pytest.raises(KeyboardInterrupt):
        save(2 * vector(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Choose another folder"):
        save(vector(), tmp_path / "file" / "v.safetensors")
    with pytest.raises(ValueError, match=r"v\.pt: expected a name that ends in"):
        save(vector(), tmp_path / "v.pt")


def test_absolute_is_a_strength_at_the_median_norm():
    """On a state whose norm is the median, adding the absolute vector is adding relative to the norm."""
    found = absolute(vector((1,)), 0.2)
    hidden = random(1, 1, 32, seed=8)
    hidden = hidden / hidden.norm() * vector((1,)).norms[Site(1)]
    wanted = Add()(hidden, vector((1,)).directions[Site(1)], 0.2)
    torch.testing.assert_close(Add(relative=False)(hidden, found.directions[Site(1)], 1.0), wanted)
    assert found.provenance["absolute"] == "0.2"
    with pytest.raises(ValueError, match="no norms"):
        absolute(vector(norms=False), 0.2)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_lm_eval_adds_the_same_as_we_do(tmp_path, family):
    """As its `steered` model applies the file: modules of `base_model` by name, output + coefficient x vector."""
    model, ours = tiny_models.text_model(family), vector((0, "1.mlp", "1.attention", -1))
    content = torch.load(to_lm_eval(ours, tmp_path / "v.pt", model, strength=2.5), weights_only=True)
    named, hooks = dict(model.base_model.named_modules()), []

    def adding(push):
        return lambda module, args, out: (out[0] + push, *out[1:]) if isinstance(out, tuple) else out + push

    tokens = tiny_models.tokens(2, 7)
    for name, entry in content.items():
        assert (entry["action"], entry["bias"], entry["head_index"]) == ("add", None, None)
        push = entry["steering_vector"] * entry["steering_coefficient"]
        hooks.append(named[name].register_forward_hook(adding(push)))
    try:
        theirs = model(**tokens).logits
    finally:
        for hook in hooks:
            hook.remove()
    with steering(model, ours, 2.5, relative=False, keep_norm=False):
        torch.testing.assert_close(model(**tokens).logits, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(**tokens).logits, theirs, atol=0.1)


@pytest.mark.parametrize(
    ("name", "sites", "says"),
    [("v.json", (1,), r"v\.json"), ("v.pt", ("1.heads",), "heads"), ("v.pt", (7,), "layer 7")],
)
def test_what_lm_eval_cannot_take_is_said(tmp_path, name, sites, says):
    with pytest.raises(ValueError, match=says):
        to_lm_eval(vector(sites), tmp_path / name, tiny_models.text_model("llama"))


def test_the_hub_gets_a_file_and_a_card(tmp_path, monkeypatch):
    """Without a network: what would be uploaded is kept, and downloaded from there."""
    import huggingface_hub as hf

    def upload(self, repo_id, folder_path, commit_message):
        for file in Path(folder_path).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return f"https://huggingface.co/{repo_id}"

    made = []
    monkeypatch.setattr(hf.HfApi, "create_repo", lambda self, repo, private, exist_ok: made.append((repo, private)))
    monkeypatch.setattr(hf.HfApi, "upload_folder", upload)
    monkeypatch.setattr(hf, "hf_hub_download", lambda repo, name, revision, token: str(tmp_path / name))
    assert hub.push(vector(), "me/kind", private=True) == "https://huggingface.co/me/kind"
    assert made == [("me/kind", True)]
    same(hub.pull("me/kind"), vector())
    text = (tmp_path / "README.md").read_text()
    assert all(part in text for part in ("base_model: owner/name", "# kind", "| method | mean |", 'pull("me/kind")'))
