"""The benchmarks of GrAInS run at a small size on a tiny model, resume, and say what they found."""

import csv
import json
from importlib import import_module

import pytest
import torch
from grains_toys import BAD, GOOD, PLAIN, planted
from tiny_models import tokenizer

from steer.cli.record import Rows
from steer.language.data import Pair

forms, grains, grains_runs, persona, persona_methods = (
    import_module(f"benchmarks.{name}") for name in ("forms", "grains", "grains_runs", "persona", "persona_methods")
)
FIELDS = ("question", "statement", "answer_matching_behavior", "answer_not_matching_behavior")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Persona files of good and bad words, TruthfulQA of a few rows, and the planted model in the place of SmolLM2."""
    model, _ = planted()
    model.float()
    monkeypatch.setattr("steer.load", lambda name: (model, tokenizer()))
    monkeypatch.setattr(grains, "peaks", lambda *_: {"ours_mb": 1.0, "captum_mb": 2.0})
    (tmp_path / "persona").mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("extraversion", "interest-in-art"):
        lines = []
        for k in range(60):
            words = (GOOD if k % 2 else BAD) + PLAIN
            text = "".join(words[i] for i in torch.randint(len(words), (6,), generator=generator).tolist())
            answers = (" Yes", " No") if k % 2 else (" No", " Yes")
            lines.append(dict(zip(FIELDS, ("Is" + text, text.strip(), *answers))))
        (tmp_path / "persona" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with (tmp_path / "truthfulqa.csv").open("w") as file:
        rows = csv.DictWriter(file, ["Question", "Best Answer", "Best Incorrect Answer", "Incorrect Answers"])
        rows.writeheader()
        for words in ("Is the cat red", "Is the dog blue", "Is it sad and red", "Is it not the cat"):
            rows.writerow(dict(zip(rows.fieldnames, (words, "Yes it is", "No", "No"))))
    return tmp_path


def test_the_check_the_gaps_and_the_speed(data):
    bench = grains.Grains(data=data, form="published", out=data / "out", results=data, small=True, levels=(3,))
    grains.main(bench)
    found = json.loads((data / "grains.json").read_text())
    assert {(line["data"], line["method"]) for line in found["attribution"]} == {
        (name, method) for name in bench.personas for method in ("ig", "occlusion")
    }
    for line in found["reading"]:
        assert line["area"][0] > 0.9, "the planted model prefers what it is asked about good words"
    for line in found["attribution"]:
        assert line["pairs"] == 4
        mean, low, high = line["I+ - random"]
        assert low <= mean <= high
        assert mean == pytest.approx(line["I+"] - line["random+"], abs=1e-6)
    assert [line["baseline"] for line in found["gaps"]] == ["prompt", "random", "pad", "mean", "zero"] * 2
    for line in found["speed"]:
        assert line["apart at most"] < 1e-4
        assert line["ours, MB"] == 1.0
    rows = Rows(data / "out" / "results.jsonl").rows
    grains.main(bench)
    assert Rows(data / "out" / "results.jsonl").rows == rows
    grains.main(grains.replace(bench, part="gaps", words="all"))
    found = json.loads((data / "grains.json").read_text())["gaps"]
    assert [line["baseline"] for line in found if line["words"] == "all"] == ["random", "pad", "mean", "zero"] * 2


def test_a_check_that_passes_says_so():
    def rows(shift):
        values = {"I+": 1.0 + shift, "random+": 0.1, "I-": -1.0, "random-": 0.0, "gap": 0.01}
        kind = {"data": "a", "form": "asked", "words": "own", "k": 5, "method": "ig", "asked": "prompt"}
        return [{**kind, **values, "I+": values["I+"] + 0.01 * k} for k in range(8)]

    assert grains.TABLES["attribution"](rows(0.0))[0]["passed"]
    assert not grains.TABLES["attribution"](rows(-1.0))[0]["passed"]


def test_the_study_chooses_on_validation_and_judges_on_others(data):
    methods = ("caa", "grains", "random-masks", "random", "prompt")
    options = {
        "data": data,
        "out": data / "out",
        "results": data,
        "small": True,
        "methods": methods,
        "heads": 4,
        "cap": 9.0,
    }
    bench = persona.Persona(**options)
    persona.main(bench_of(bench))
    rows = Rows(data / "out" / "results.jsonl")
    found = json.loads((data / "persona.json").read_text())["table"]
    assert [line["method"] for line in found] == list(methods)
    for method in methods:
        tried, (kept,) = (rows.find(what=what, method=method) for what in ("validation", "held out"))
        best = max(tried, key=lambda row: row["change"])
        assert (kept["layer"], kept["strength"]) == (best["layer"], best["strength"])
        assert len(kept["plain"]) == len(kept["+"]) == len(kept["-"]) == 8
    for line in found:
        for name in ("m(+v) - m", "m(-v) - m", "[m(+v) - m(-v)] / 2"):
            mean, low, high = line[name]
            assert low <= mean <= high
        assert line["perplexity x"] == pytest.approx(1.0) if line["method"] == "prompt" else line["perplexity x"] > 0
        assert (line["m(+v) - m"][0] - line["m(-v) - m"][0]) / 2 == pytest.approx(
            line["[m(+v) - m(-v)] / 2"][0], abs=1e-4
        )
    before = rows.rows
    persona.main(bench_of(bench))
    assert Rows(data / "out" / "results.jsonl").rows == before


def test_a_copy_in_half_precision_is_judged(data):
    bench = persona.Persona(data=data, fitted=8, validated=8, held_out=8, seeds=1, judged="bfloat16")
    model, words = persona.steer.load("smollm2")
    study = persona.study_of(bench, model, words, "extraversion", 0)
    exact = persona.replace(study, judged="float32")
    assert study.judge.dtype == torch.bfloat16
    assert model.dtype == study.vector("caa").directions[study.vector("caa").sites[0]].dtype == torch.float32
    assert exact.judge is model
    assert not torch.equal(study.plain.held_out, exact.plain.held_out)
    assert torch.allclose(study.plain.held_out, exact.plain.held_out, atol=0.1)


def test_the_area_under_the_curve_and_its_interval():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(60, generator=generator) + 1, torch.randn(40, generator=generator)
    mean, low, high = grains_runs.area(a, b)
    assert mean == pytest.approx(sum(float(x > y) for x in a for y in b) / 2400)
    draws = [
        grains_runs.area(
            a[torch.randint(60, (60,), generator=generator)], b[torch.randint(40, (40,), generator=generator)]
        ).mean
        for _ in range(500)
    ]
    spread = float(torch.tensor(draws).std())
    assert high - mean == pytest.approx(mean - low) == pytest.approx(1.96 * spread, rel=0.2)
    assert grains_runs.area(torch.ones(3), torch.ones(2)).mean == 0.5


def bench_of(bench):
    """Small, at a layer that the tiny model has."""
    small = bench.sized
    return persona.replace(small, small=False, layers=(1,), strengths=(0.1, 0.3))


def statements(n):
    """As many of each kind, the matching ones longer, no two of one length."""
    return [Pair("mn"[k % 2] + "x" * k, *((" No", " Yes") if k % 2 else (" Yes", " No"))) for k in range(n)]


def test_statements_as_responses():
    given = statements(16)[5:] + statements(16)[:5]
    found = forms.said(given)
    assert len(found) == 8
    texts = [pair.prompt.split('"')[1] for pair in found]
    for pair, text in zip(found, texts):
        positive, negative = (option.strip(' "') for option in pair.options)
        assert (positive[0], negative[0]) == ("m", "n")
        assert abs(len(positive) - len(negative)) == 1
        assert text not in (positive, negative)
        assert pair.prompt == f'A person says: "{text}"\nThe same person says:'
    assert sorted(option.strip(' "') for pair in found for option in pair.options) == sorted(p.prompt for p in given)
    assert sum(text[0] == "m" for text in texts) == 4
    assert len(set(texts)) == 8
    assert [pair.positive.strip(' "') for pair in found] == [p.prompt for p in given if p.positive == " Yes"]


def test_no_statement_is_in_two_parts(data):
    parts = forms.parts_of(data / "persona" / "extraversion.jsonl", "said", (4, 8, 12))
    assert [len(part) for part in parts] == [4, 8, 12]
    words = [{t for pair in part for t in (pair.prompt.split('"')[1], *pair.options)} for part in parts]
    every = [{text.strip(' "') for text in part} for part in words]
    assert not every[0] & every[1] | every[0] & every[2] | every[1] & every[2]
    with pytest.raises(ValueError, match="ask for fewer"):
        forms.parts_of(data / "persona" / "extraversion.jsonl", "said", (31,))


def test_a_statement_is_asked_about_its_file_s_trait(data):
    pair = forms.answered(data / "persona" / "extraversion.jsonl", "asked")[0]
    assert pair.prompt.startswith('A person says: "')
    assert pair.prompt.endswith('"\nQuestion: Is this person outgoing and sociable?\nAnswer:')
    (data / "persona" / "other.jsonl").write_text((data / "persona" / "extraversion.jsonl").read_text())
    assert forms.answered(data / "persona" / "other.jsonl", "published")[0].prompt.endswith("\nAnswer:")
    with pytest.raises(ValueError, match=r"no trait to ask for; expected a file of \['agreeableness'"):
        forms.answered(data / "persona" / "other.jsonl", "asked")


def test_no_pair_is_in_two_parts(data):
    bench = persona.Persona(data=data, form="published", fitted=8, validated=8, held_out=8, seeds=3)
    studies = [persona.study_of(bench, None, None, "extraversion", seed) for seed in range(3)]
    assert studies[0].held_out == studies[1].held_out
    parts = [*(study.pairs for study in studies), studies[0].validation, studies[0].held_out]
    prompts = [pair.prompt for part in parts for pair in part]
    assert len(prompts) == len(set(prompts)) == 40
    assert all(sum(pair.positive == " Yes" for pair in part) == 4 for part in parts)
    with pytest.raises(ValueError, match="seed 3"):
        persona.study_of(bench, None, None, "extraversion", 3)


def test_where_nothing_is_under_the_cap_the_mildest_setting_is_taken():
    rows = [{"change": c, "perplexity": p} for c, p in ((1.0, 1.3), (0.5, 1.2), (2.0, 1.5))]
    assert persona.chosen(rows, 1.05) == rows[1]
    assert persona.chosen(rows, 1.4) == rows[0]


def test_the_prompt_baseline_puts_words_in_front(data):
    study = persona_methods.Study(None, None, "risk-averse", 0, (), (), (), "published", 5, (20,), 4, "float32")
    plain = [Pair("Is it?", " Yes", " No")]
    (pair,) = persona_methods.instructed(study, plain, -1)
    assert pair.prompt == "Answer as someone without any risk averse would.\n\nIs it?"
    (pair,) = persona_methods.instructed(persona.replace(study, form="said"), plain, 1)
    assert pair.prompt == "Someone with very much risk averse speaks.\n\nIs it?"


def test_best_of_n_is_the_best_of_n_draws():
    """Where the reward is for the wanted one, one wanted draw is enough; where it is against, all must be wanted."""
    margins, rewards = torch.tensor([-3.0, 0.2, 1.5, 1.0]), torch.tensor([0.1, -2.0, 5.0, 0.0])
    wanted = torch.rand(4, 100_000, 4, generator=torch.Generator().manual_seed(0)) < margins.sigmoid()
    drawn = torch.where(rewards > 0, wanted.any(0), torch.where(rewards < 0, wanted.all(0), wanted[0])).double()
    found = persona_methods.best_of(margins, rewards, 4).sigmoid().double()
    assert ((found - drawn.mean(0)).abs() < 4 * drawn.std(0) / 100_000**0.5).all()
    assert torch.equal(persona_methods.best_of(margins, rewards, 1).isclose(margins), torch.ones(4).bool())
