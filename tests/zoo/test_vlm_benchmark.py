"""benchmarks.vlm runs at a small size on a tiny model, resumes, and says what it found."""

import json
from copy import deepcopy
from importlib import import_module

import pytest
import torch
from test_vlm import heard, tiny

from steer.cli.record import Rows
from steer.language.data import Pair
from steer.language.grains.margin import preference
from steer.zoo import vlm
from steer.zoo.data import RELATIONS, STYLES, glyphs, rgba, scene
from steer.zoo.questions import grouped, presence

bench, methods, runs = (import_module(f"benchmarks.{name}") for name in ("vlm", "vlm_methods", "vlm_runs"))


@pytest.fixture(scope="module")
def seeing():
    language = tiny()
    model = vlm.joined(heard(language).state_dict(), language.model)
    return vlm.Seeing(model, vlm.processor_of(language.tokenizer))


@pytest.fixture
def asked():
    return runs.asked(runs.unseen(6), 0)


def test_both_parts(seeing, tmp_path, monkeypatch):
    monkeypatch.setattr("steer.load", lambda name: deepcopy(seeing))  # it makes half precision of the model
    few = bench.Vlm(small=True, out=tmp_path, results=tmp_path).sized
    asked = bench.replace(few, small=False, pictures=2, layers=(1,), strengths=(0.1, 0.3), seeds=2)
    bench.main(asked)
    rows, found = Rows(tmp_path / "results.jsonl"), json.loads((tmp_path / "vlm.json").read_text())
    assert [line["method"] for line in found["tokens"]] == ["occlusion", "ig"]
    for line in found["tokens"]:
        mean, low, high = line["top - random"]
        assert low <= mean <= high
        assert mean == pytest.approx(line["top"] - line["random"], abs=1e-5)
    assert [line["method"] for line in found["yes"]] == list(methods.METHODS)
    for line in found["yes"]:
        tried, kept = (rows.find(what=what, method=line["method"]) for what in ("validation", "held out"))
        best = bench.chosen(tried, asked.loss)
        assert len(kept) == (1 if line["method"] in methods.SEEDLESS else 2)
        assert {(row["layer"], row["strength"]) for row in kept} == {(best["layer"], best["strength"])}
    before = rows.rows
    bench.main(asked)
    assert Rows(tmp_path / "results.jsonl").rows == before


@torch.no_grad()
def test_margins_are_those_of_one_question_alone(seeing, asked):
    """In float32, as one row of the model's own logits; padding and the order of rows change nothing."""
    found = runs.margins(seeing, asked, rows=5)
    yes, no = (seeing.processor.tokenizer(word).input_ids[0] for word in ("Yes", "No"))
    for k, (one, names) in enumerate(zip(*asked)):
        for j, name in enumerate(names):
            text = runs.prompt(presence(name))
            given = seeing.processor(text=[text], images=[runs.pixels(one)], return_tensors="pt")
            logits = seeing.model(**given).logits[0, -1]
            assert float(found[k, j]) == pytest.approx(float(logits[yes] - logits[no]), abs=1e-4)


def test_what_is_asked(asked):
    groups = grouped()
    for one, (first, second, near, other) in zip(*asked):
        assert (first, second) == one.names
        assert groups[near] == groups[first]
        assert not {near, other} & set(one.names)
    pairs = asked.pairs()
    assert [pair.positive for pair in pairs] == ["Yes", "No"] * 6
    assert {pair.negative for pair in pairs} == {"Yes", "No"}
    shown = runs.unseen(200)
    assert len({one.caption for one in shown}) == 200


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_half_holds_its_object_and_nothing_of_the_other(relation):
    shown = next(one for one in runs.unseen(60) if f"{one.names[0]} {relation} " in one.caption)
    pictures, names, _ = glyphs()
    style = STYLES.index(shown.caption.split(", ")[1].removesuffix(" style"))
    objects = [rgba(pictures[style, names.index(name)]) for name in shown.names]
    side = vlm.SIZE // vlm.PATCH
    for which in (0, 1):
        alone = [one if k == which else torch.zeros_like(one) for k, one in enumerate(objects)]
        inside = runs.half(shown, which).view(1, side, side).repeat_interleave(vlm.PATCH, 1)
        kept = shown.picture.where(inside.repeat_interleave(vlm.PATCH, 2), 1.0)
        torch.testing.assert_close(kept, scene(*alone, relation))


def test_one_row_scores_two_answers_of_a_token(seeing):
    model, processor = seeing
    (shown,) = runs.unseen(1)
    for answers, rows in ((("Y", "N"), 1), (("Yes", "No"), 2)):
        margin = preference(model, processor, Pair(runs.prompt("Is it?"), *answers, image=runs.pixels(shown)))
        one = runs.together(margin)
        prompts = torch.stack([margin.embeds, margin.embeds.flip(0)])
        assert (len(margin.scored), len(one.scored)) == (2, rows)
        torch.testing.assert_close(one(prompts), margin(prompts))
        torch.testing.assert_close(
            one.gradient(prompts, 0 * margin.embeds), margin.gradient(prompts, 0 * margin.embeds), atol=1e-4, rtol=1e-4
        )


def test_the_share_of_a_half():
    own = torch.arange(4) < 2
    assert runs.share(torch.tensor([3.0, -9.0, 1.0, -2.0]), own) == 0.75
    assert runs.share(torch.tensor([-3.0, -9.0, -1.0, 0.0]), own) == 0.5


def test_measures():
    found = bench.measured(torch.tensor([[3.0, -1.0, -2.0, 1.0], [2.0, 1.0, -1.0, -1.0], [0.5, 0.5, 0.5, 0.5]]))
    expected = {"present": (0.5, 1, 1), "near": (0, 0, 1), "any": (1, 0, 1), "absent": (0.5, 0, 1)}
    for name, values in (expected | {"balanced": (0.5, 1, 0.5), "auc": (0.75, 1, 0.5)}).items():
        assert found[name].tolist() == pytest.approx(values), name


def test_a_threshold_orders_as_the_model_does(seeing, asked):
    study = methods.Study(seeing, 0, 2, (1, 1), 1)
    plain, moved = (methods.answered(study, "threshold", methods.Setting(None, t), asked) for t in (0.0, 0.5))
    torch.testing.assert_close(moved, plain - 0.5)
    assert torch.equal(bench.measured(moved)["auc"], bench.measured(plain)["auc"])


def test_vcd_between_two_answers():
    plain, noise = torch.tensor([0.5, 2.0, -2.4]), torch.tensor([1.0, -1.0, 3.0])
    torch.testing.assert_close(methods.contrasted(plain, noise, 0.0), plain)
    torch.testing.assert_close(methods.contrasted(plain, noise, 2.0), torch.tensor([-0.5, 8.0, -2.4]))


def test_the_choice():
    rows = [
        {"present": p, "absent": a, "balanced": b} for p, a, b in ((-0.5, -0.9, 0.2), (-0.02, -0.1, 0.04), (0, 0, 0))
    ]
    assert bench.chosen(rows, 0.02) == rows[1]
    assert bench.chosen(rows[:1], 0.02) == rows[0]


def test_wrong_captions_name_what_is_not_there(seeing, monkeypatch):
    said = {}
    monkeypatch.setattr(methods.vti, "textual", lambda model, right, wrong: said.update(right=right, wrong=wrong))
    study = methods.Study(seeing, 0, 4, (1, 1), 1)
    methods.textual(study)
    texts = [
        seeing.processor.batch_decode(said[side]["input_ids"], skip_special_tokens=True) for side in ("right", "wrong")
    ]
    for right, wrong, one, names in zip(*texts, *study.asked):
        assert one.caption in right
        assert one.caption not in wrong
        assert sum(name in wrong for name in names[2:]) >= 1
