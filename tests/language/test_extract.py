"""Extractors: planted directions are found, swapping the sides flips them, states are read where it is said."""

import copy
from functools import partial

import pytest
import tiny_models
import tiny_vlms
import torch
from torch.nn import functional as F

import steer
from steer.language import Site, norms, recording, steering
from steer.language.data import Pair, encoded
from steer.language.extract import directions, fit, fitting
from steer.language.extract.directions import logistic, mean_difference, pca, probe
from steer.language.record import run

MAPPED = partial(probe, mapped=True)
EXTRACTORS = {"mean": mean_difference, "pca": pca, "probe": probe, "mapped": MAPPED}
ASKED = ["the cat is", "Is it a red dog? ", "I", "you and the cat", "not a dog", "it is"]
PAIRS = [Pair(prompt, " Yes", " No") for prompt in ASKED]


def planted(n=64, d=16, size=3.0, seed=0, d_type=torch.float32):
    """Rows that differ by `size` along u and share a prompt's part; (positive, negative, u)."""
    generator = torch.Generator().manual_seed(seed)
    u = F.normalize(torch.randn(d, generator=generator), dim=0)
    shared, *noise = (torch.randn(n, d, generator=generator) for _ in range(3))
    return (2 * shared + noise[0] + size * u).to(d_type), (2 * shared + noise[1]).to(d_type), u.to(d_type)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_a_planted_direction_is_found(name):
    positive, negative, u = planted()
    assert F.cosine_similarity(EXTRACTORS[name](positive, negative), u, dim=0) > 0.9


@pytest.mark.parametrize("name", EXTRACTORS)
def test_swapping_both_sides_flips_the_direction(name):
    positive, negative, _ = planted(n=10)
    torch.testing.assert_close(
        EXTRACTORS[name](negative, positive), -EXTRACTORS[name](positive, negative), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["mean", "probe", "mapped"])
def test_one_pair_gives_its_difference(name):
    positive, negative, _ = planted(n=1)
    found = EXTRACTORS[name](positive, negative)
    assert F.cosine_similarity(found, (positive - negative)[0], dim=0) > 1 - 1e-6


def test_every_method_is_tested():
    assert set(directions.METHODS.values()) <= set(EXTRACTORS.values())


def test_directions_have_the_scale_they_state():
    positive, negative, _ = planted()
    torch.testing.assert_close(mean_difference(positive, negative), (positive - negative).mean(0))
    assert [float(f(positive, negative).norm()) for f in (pca, probe, MAPPED)] == pytest.approx([1, 1, 1])


def test_centring_loses_what_all_pairs_share():
    """All pairs differ by 3 u, and a little more or less along w: uncentred PCA finds u, centred PCA w."""
    u, w = torch.eye(6)[:2]
    delta = 3 * u + torch.linspace(-1, 1, 20)[:, None] * w
    negative = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert pca(negative + delta, negative) @ u > 1 - 1e-5
    assert abs(pca(negative + delta, negative, centred=True) @ w) > 1 - 1e-5


def test_the_pattern_of_a_probe_points_where_the_weights_do_not():
    """Noise along u + w: the weights lean away from w to cancel it, their pattern leans back to the means."""
    generator = torch.Generator().manual_seed(0)
    u, w = torch.eye(8)[:2]
    rows = torch.randn(400, 8, generator=generator) + 3 * torch.randn(400, 1, generator=generator) * (u + w)
    positive, negative = rows[:200] + 5 * u, rows[200:]
    raw, mapped = probe(positive, negative), MAPPED(positive, negative)
    assert raw @ w < -0.4
    assert mapped @ u > 0.95 > raw @ u + 0.1


def test_a_probe_separates_rows_that_it_has_not_seen():
    positive, negative, _ = planted(n=200, size=6.0)
    fitted = logistic(torch.cat([positive[:100], negative[:100]]), torch.arange(200) < 100)
    assert float((fitted(positive[100:]) > 0).float().mean()) > 0.8
    assert float((fitted(negative[100:]) < 0).float().mean()) > 0.8


@pytest.mark.parametrize(("n", "d"), [(30, 5), (8, 40)])
def test_the_logistic_loss_is_at_its_least(n, d):
    """The loss as its docstring writes it, differentiated by torch, has no slope at what was found."""
    positive, negative, _ = planted(n, d, d_type=torch.float64)
    rows, labels = torch.cat([positive, negative]), torch.arange(2 * n) < n
    found = logistic(rows, labels, penalty=0.5)
    scale = (rows - rows.mean(0)).square().mean().sqrt()
    z, y = (rows - rows.mean(0)) / scale, labels * 2.0 - 1
    w = (found.weight * scale).requires_grad_()
    b = (found.bias + found.weight.detach() @ rows.mean(0)).requires_grad_()
    loss = F.softplus(-y * (z @ w + b)).sum() + 0.25 * w.square().sum()
    slopes = torch.autograd.grad(loss, (w, b))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-4
    assert float(w.detach().norm()) > 0.5


def test_a_probe_does_not_depend_on_units_or_axes():
    positive, negative, _ = planted(n=12, d_type=torch.float64)
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    turned = probe(1000 * positive @ turn, 1000 * negative @ turn)
    torch.testing.assert_close(turned, probe(positive, negative) @ turn, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p, n: pca(p[:1], n[:1]), "at least 2"),
        (lambda p, n: pca(p, n[:5]), "pairs"),
        (lambda p, n: pca(n + 1, n, centred=True), "equal"),
        (lambda p, n: mean_difference(p, n[:, :3]), r"\(8, 16\) and negative rows \(8, 3\)"),
        (lambda p, n: mean_difference(p[:0], n), r"\(0, 16\)"),
        (lambda p, n: mean_difference(p[0], n), r"\(16,\)"),
        (lambda p, n: mean_difference(p / 0, n), "not finite"),
        (lambda p, n: probe(p, n, penalty=0), "penalty 0"),
        (lambda p, n: probe(p * 0, n * 0), "equal"),
        (lambda p, n: logistic(p, torch.ones(8, dtype=torch.bool)), "both kinds"),
    ],
)
def test_what_cannot_be_extracted_is_said(call, says):
    positive, negative, _ = planted(n=8)
    with pytest.raises(ValueError, match=says):
        call(positive, negative)


def words_apart():
    """A model that writes u for " Yes" and -u for " No" into the stream; (model, u)."""
    model = copy.deepcopy(tiny_models.text_model("llama"))
    u = F.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)
    yes, no = (tiny_models.tokenizer()(text)["input_ids"][-1] for text in (" Yes", " No"))
    weight = model.get_input_embeddings().weight.data
    weight[yes], weight[no] = 100 * u, -100 * u
    return model, u


@pytest.mark.parametrize("method", ["mean", "pca", "probe", MAPPED])
def test_a_direction_planted_in_a_model_is_found(method):
    model, u = words_apart()
    vector = fit(model, tiny_models.tokenizer(), PAIRS, method)
    assert [str(site) for site in vector.sites] == ["0", "1", "2"]
    assert float(F.normalize(vector.directions[vector.sites[0]], dim=0) @ u) > 0.9


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_states_are_those_of_transformers_below_the_final_norm(family):
    """Oracle: `output_hidden_states` of single, unpadded rows. Its last entry is behind the final norm, ours is not."""
    model, tokenizer = tiny_models.text_model(family), tiny_models.tokenizer()
    vector = fit(model, tokenizer, PAIRS, rows=4)
    wanted = []
    for pair in PAIRS:
        rows = [torch.tensor([tokenizer(pair.prompt + text)["input_ids"]]) for text in pair.options]
        states = [torch.stack(model(row, output_hidden_states=True).hidden_states)[1:, 0, -1] for row in rows]
        wanted.append(states[0] - states[1])
    found = torch.stack([vector.directions[site] for site in vector.sites])
    difference = torch.stack(wanted).mean(0).float()
    torch.testing.assert_close(found[:2], difference[:2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[2], difference[2], atol=1e-2)


def test_answer_is_the_mean_over_the_response():
    model, tokenizer = tiny_models.text_model("llama"), tiny_models.tokenizer()
    pairs = [Pair("the cat is", " happy and I", " sad"), Pair("Is it? ", "Yes", "no, it is a dog")]
    found = fit(model, tokenizer, pairs, sites=[1], at="answer").directions
    wanted = []
    for pair in pairs:
        means = []
        for text in pair.options:
            row = encoded(tokenizer, [pair.prompt], [text])
            with recording(model, [1]) as states:
                run(model, row.inputs())
            means.append(next(iter(states.values()))[0][row.answer].mean(0))
        wanted.append(means[0] - means[1])
    torch.testing.assert_close(next(iter(found.values())), torch.stack(wanted).mean(0), atol=1e-5, rtol=1e-4)


def test_a_vector_carries_norms_and_what_made_it():
    model, tokenizer = tiny_models.text_model("llama"), tiny_models.tokenizer()
    vector = fit(model, tokenizer, PAIRS, partial(pca, centred=True), sites=[0, "2.heads"], rows=5)
    rows = encoded(tokenizer, ASKED * 2, [" Yes"] * len(ASKED) + [" No"] * len(ASKED))
    assert dict(vector.norms) == pytest.approx(norms(model, rows.inputs(), [0, "2.heads"]), rel=1e-5)
    about = dict(vector.provenance)
    assert {name: about[name] for name in ("method", "at", "blocks", "width", "examples", "steer", "architecture")} == {
        "method": "pca(centred=True)",
        "at": "last",
        "blocks": "3",
        "width": "32",
        "examples": "6",
        "steer": steer.__version__,
        "architecture": "llama",
    }
    other = fit(model, tokenizer, [*PAIRS[:-1], Pair("it is", " Yes", " no")], sites=[0]).provenance
    assert (other["config"], about["model"]) == (about["config"], "LlamaForCausalLM")
    assert other["data"] != about["data"]
    assert fitting.described(tiny_models.text_model("qwen2"), "", PAIRS)["config"] != about["config"]


@pytest.mark.parametrize("path", [__file__, None])
def test_provenance_names_no_folder(path, tmp_path):
    model = copy.deepcopy(tiny_models.text_model("llama"))
    model.config._name_or_path = str(tmp_path) if path else "owner/name"
    about, plain = (fitting.described(m, "mean", []) for m in (model, tiny_models.text_model("llama")))
    assert about["model"] == (tmp_path.name if path else "owner/name")
    assert about["config"] == plain["config"]


class Processor:
    """A picture is 4 tokens between its marks; of Qwen it is 16 rows of patches, which no batch may be cut into."""

    tokenizer = tiny_models.tokenizer()

    def __init__(self, family):
        self.family = family

    def __call__(self, text, images, return_tensors, **special):
        marked = text[0].replace("<image>", "<begin>" + "<image>" * 4 + "<end>")
        ids = self.tokenizer(marked, return_tensors="pt")["input_ids"]
        types = (
            {tiny_vlms.TYPES[self.family]: (ids == tiny_models.IMAGE).long()} if self.family in tiny_vlms.TYPES else {}
        )
        return {"input_ids": ids, **types, **tiny_vlms.pictures(self.family, images[0][None])}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_pairs_about_pictures_are_read_with_them(family):
    """Batches of several pictures give what each pair gives alone, and another picture another direction."""
    model, processor = tiny_vlms.vision_model(family), Processor(family)
    images = list(torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    pairs = [Pair(f"<image>{text}", " Yes", " No", image) for text, image in zip(ASKED, images)]
    alone = [fit(model, processor, [pair]).directions for pair in pairs]
    for place, found in fit(model, processor, pairs, rows=4).directions.items():
        wanted = torch.stack([each[place] for each in alone]).mean(0)
        # padding moves what a family that counts positions by itself sees by its rotary angles
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)
    swapped = fit(model, processor, [Pair(pairs[0].prompt, " Yes", " No", images[1])])
    assert not torch.allclose(swapped.directions[Site(2)], alone[0][Site(2)], atol=1e-2)
    assert swapped.provenance["data"] != fit(model, processor, pairs[:1]).provenance["data"]


@pytest.mark.parametrize(
    ("pairs", "options", "says"),
    [
        (PAIRS, {"method": "median"}, "unknown method 'median'"),
        ([], {}, "0 pairs"),
        ([PAIRS[0], Pair("a", "b", "c", image="x.png")], {}, "1 with an image"),
        (PAIRS, {"at": "first"}, "at='first'"),
        (PAIRS, {"sites": [7]}, "layer 7"),
        ([Pair("a cat " * 400, " Yes", " No")], {}, "context of LlamaForCausalLM is 512"),
        (PAIRS[:1], {"method": "pca"}, "at least 2"),
    ],
)
def test_what_cannot_be_fitted_is_said(pairs, options, says):
    with pytest.raises(ValueError, match=says):
        fit(tiny_models.text_model("llama"), tiny_models.tokenizer(), pairs, **options)


def test_a_fitted_vector_steers():
    """The vector for " Yes" raises the log-odds of Yes against No, its negative lowers them."""
    model, _ = words_apart()
    tokenizer = tiny_models.tokenizer()
    yes, no = (tokenizer(text)["input_ids"][-1] for text in (" Yes", " No"))
    vector = fit(model, tokenizer, PAIRS, sites=[2])
    model.lm_head.weight.data[yes] = vector.directions[Site(2)]
    row = encoded(tokenizer, ASKED[:1], [" cat"]).inputs()

    def odds(strength):
        with steering(model, vector, strength):
            logits = run(model, row).logits[0, -1]
        return float(logits[yes] - logits[no])

    assert odds(0.5) > odds(0.0) > odds(-0.5)
