"""The benchmark of fine-tuning on texts at a small size: it resumes, says why a run failed, and counts rightly."""

import csv
import json
from copy import deepcopy
from dataclasses import replace

import pytest
import text_toys as toys
import tiny_models
import torch
from safetensors.torch import save_file

import steer
from benchmarks import texts, texts_delta, texts_dft, texts_diet, texts_signs
from benchmarks.texts import Texts, main
from benchmarks.texts_features import Labelled, Table, flipped
from benchmarks.texts_parts import Check, World, last, of, some
from benchmarks.texts_problems import OTHER_STORIES, STORIES, invented, problems, right
from steer.cli.record import Rows
from steer.measure import Interval
from steer.training import Run, tune
from steer.training.text.methods import text_sft

TINY = texts_diet.Size(train=40, test=40, epochs=4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Data in the published forms, and a tiny model in the place of SmolLM2."""
    (tmp_path / "persona").mkdir()
    said = [(f"I {word} {k}", word) for k in range(40) for word in ("good", "bad")]
    rows = [{"statement": text, "question": text} for text, _ in said]
    for row, (_, word) in zip(rows, said):
        yes, no = (" Yes", " No") if word == "good" else (" No", " Yes")
        row |= {"answer_matching_behavior": yes, "answer_not_matching_behavior": no}
    written = {
        "persona/interest-in-art": rows,
        "gsm8k_test": [{"question": f"{k} and {k}?", "answer": f"<<{k}>>{2 * k}"} for k in range(1, 13)],
        "self_instruct_seed_tasks": [
            {"instruction": f"dog {k}", "instances": [{"output": "happy"}]} for k in range(12)
        ],
    }
    for name, content in written.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    with (tmp_path / "truthfulqa.csv").open("w") as file:
        csv.writer(file).writerows([("Question", "Best Answer"), *((f"Is it {k}?", "Yes") for k in range(12))])
    model = deepcopy(tiny_models.text_model("llama"))
    monkeypatch.setattr(steer, "load", lambda name: (model, tiny_models.tokenizer()))
    return tmp_path


@pytest.mark.parametrize("part", texts.PARTS)
def test_a_part_runs_resumes_and_leaves_the_model_as_it_was(part, folder):
    before = {name: weight.clone() for name, weight in steer.load("smollm2")[0].state_dict().items()}
    page = folder / "page.md"
    page.write_text("<!-- python -m benchmarks.texts -->\n<!-- end of python -m benchmarks.texts -->\n")
    bench = Texts((part,), folder, seeds=2, small=True, out=folder / "out", results=folder, into=page)
    main(bench)
    rows = Rows(folder / "out" / "results.jsonl").rows
    study = texts.PARTS[part]
    assert len(rows) == len(study.cells(study.small, 2))
    assert not [row["failed"] for row in rows if "failed" in row]
    found = json.loads((folder / "texts.json").read_text())["tables"]
    assert [line["check"] for line in found["checks"]] == [check.claim for check in study.checks]
    assert "not made" not in found[part][0]
    assert all(line["check"] in page.read_text() for line in found["checks"])
    after = steer.load("smollm2")[0].state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    main(replace(bench, into=None))
    assert Rows(folder / "out" / "results.jsonl").rows == rows


def test_a_run_that_fails_is_a_row_and_its_checks_say_why(folder):
    path = folder / "persona" / "interest-in-art.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:9]))
    main(Texts(("diet",), folder, seeds=1, small=True, out=folder / "out", results=folder))
    rows = Rows(folder / "out" / "results.jsonl").rows
    assert len(rows) == len(texts_diet.METHODS)
    assert all("9 statements" in row["failed"] for row in rows)
    tables = json.loads((folder / "texts.json").read_text())["tables"]
    assert all(line["met"] is None and "9 statements" in line["note"] for line in tables["checks"])
    assert "9 statements" in tables["diet"][0]["not made"]
    with pytest.raises(ValueError, match=r"gsm8k 1.* have no weights"):
        texts_delta.run(World(*steer.load("smollm2"), folder, folder), texts_delta.Size(), texts_delta.WEIGHTS)


def test_a_claim_is_met_by_its_interval_or_by_its_number():
    rows = [{"x": value} for value in (-1.0, 0.5, 2.0)]
    check = Check("", lambda rows: of(rows, "x"), 0.4)
    assert check.line(rows)["met"] is False
    assert check._replace(whole=False).line(rows)["met"] is True
    assert check.line(rows[1:])["met"] is True
    assert Check("", lambda rows: Interval(0.7, 0.5, 0.9), 0.6).line(rows)["met"] is False
    assert Check("", lambda rows: 5.0, 5.0, False).line(rows)["met"] is True
    assert Check("", lambda rows: 5.0, 5.0).line(rows)["met"] is False
    with pytest.raises(ValueError, match="too hot"):
        some([*rows, {"failed": "too hot"}])
    with pytest.raises(ValueError, match="dft was not run"):
        some(rows, method="dft")


def test_the_last_blocks_are_trained_and_no_other():
    task = toys.task()
    names = last(task.model, 2)
    assert {name.split(".")[2] for name in names} == {"1", "2"}
    assert len(names) == 2 * 7  # q, k, v, o; gate, up, down
    tuned = tune(task, text_sft(2, 2, 1e-2, names), Run(1))
    assert {".".join(name.split(".")[:3]) for name in tuned.last} == {"model.layers.1", "model.layers.2"}


def labelled(count: int = 100) -> Labelled:
    features = torch.randn(count, 8, generator=toys.generator())
    return Labelled(Table(features), torch.arange(0, count, 2), (features[:, 0] > 0).long())


def test_flips_are_as_many_as_asked_for_and_only_where_asked_for():
    task = labelled()
    places = task.rows.input_ids[:, 0]
    wrong = (flipped(task.labels, places, 0.1, toys.generator()) != task.labels).nonzero()[:, 0]
    assert len(wrong) == 5
    assert set(wrong.tolist()) <= set(places.tolist())
    assert torch.equal(flipped(task.labels, places, 0.0, toys.generator()), task.labels)


def test_a_table_is_trained_by_the_methods_about_texts():
    """On its own examples only, to what logistic regression finds: the labels are a half-space. And it is counted."""
    task = labelled()
    tune(task, text_sft(10, 4, 3e-2, ("head",)), Run(100))
    places = task.rows.input_ids[:, 0]
    assert (task.model(places).argmax(-1) == task.labels[places]).double().mean() > 0.95
    assert task.ledger.backward_tokens == task.ledger.tokens == 100 * 10


def test_drawn_examples_are_as_many_as_the_hardest_and_are_others():
    """The same steps, batches and shares: what is compared is the choice alone."""
    for build, count in ((texts_diet.diet, 36), (lambda size, *drawn: texts_diet.subset(size, 0.5, *drawn), 20)):
        pools, used = [], []
        for method, steps in (build(TINY), build(TINY, toys.generator())):
            task = labelled(80)
            tuned = tune(task, method, Run(steps))
            used.append([row["tokens"] for row in tuned.log])
            loss = method.phases[-1].objective(tuned.handle, task)
            for _ in range(TINY.warm * 3 + 1 if count == 20 else 1):  # epochs of 3 batches over all, then a cycle
                loss(toys.generator(), 0)
            pools.append(loss.among)
        assert used[0] == used[1]
        assert [len(pool) for pool in pools] == [count, count]
        assert not torch.equal(*pools)


def test_all_examples_are_an_epoch():
    """keep = 1: each example once an epoch; halves save what the claim says."""
    gradients = []
    for keep in (1.0, 0.5):
        task = labelled(80)
        method, steps = texts_diet.subset(TINY, keep)
        tune(task, method, Run(steps))
        gradients.append(task.ledger.backward_tokens)
    assert gradients == [4 * 40, 2 * 40 + 2 * 20]


def test_the_hardest_examples_are_the_flipped_ones(folder):
    """Where the features hold the label and little else, the share found is the greatest that there can be."""
    world = World(*steer.load("smollm2"), folder, folder)
    labels = torch.arange(80) % 2 == 0
    states = torch.randn(80, 4, generator=toys.generator()) * 0.01
    states[:, 0] = labels.double() * 2 - 1
    save_file({"states": states}, folder / "interest-in-art.safetensors")
    row = texts_diet.run(world, replace(TINY, lr=3e-2), texts_diet.HARD, 0)
    assert row["found"] == pytest.approx(10)
    assert row["accuracy"] == 1.0
    with pytest.raises(ValueError, match="expected 60 of both"):
        texts_diet.run(world, replace(TINY, test=20), texts_diet.HARD, 0)


def test_inner_products_of_low_rank_changes_are_those_of_the_whole():
    draw = toys.generator()
    adapters = [
        {f"{layer}.lora_{part}.default.weight": torch.randn(*shape, generator=draw) for layer in "xy"
         for part, shape in (("A", (2, 5)), ("B", (3, 2)))}
        for _ in range(3)
    ]  # fmt: skip
    found = texts_delta.compared(adapters)
    whole = torch.stack(
        [
            torch.cat([(one[f"{k}.lora_B.default.weight"] @ one[f"{k}.lora_A.default.weight"]).flatten() for k in "xy"])
            for one in adapters
        ]
    )
    parts = torch.stack([torch.cat([weight.flatten() for weight in one.values()]) for one in adapters])
    torch.testing.assert_close(torch.tensor(found["changes"]), whole @ whole.T, check_dtype=False)
    torch.testing.assert_close(torch.tensor(found["numbers"]), parts @ parts.T, check_dtype=False)
    rows = [{"adapter": texts_delta.WEIGHTS, **found}]
    again = texts_delta.vectors(rows, "changes")
    torch.testing.assert_close(again @ again.T, torch.tensor(found["changes"], dtype=torch.float64))


def test_twins_are_next_to_each_other_in_the_list():
    rows = [{"adapter": name, "vector": [float(k // 2 == j) for j in range(3)]}
            for k, name in enumerate(texts_delta.ADAPTERS)]  # fmt: skip
    assert [name.split(" ")[0] for name in texts_delta.ADAPTERS[::2]] == list(texts_delta.DOMAINS)
    assert texts_delta.twins(rows, "vector") == 6
    assert texts_delta.grouped(rows, "vector") == 1
    rows[0], rows[2] = {**rows[0], "vector": rows[2]["vector"]}, {**rows[2], "vector": rows[0]["vector"]}
    assert texts_delta.twins(rows, "vector") < 6


def test_a_hard_prompt_asks_for_brackets_and_an_easy_one_does_not():
    known = texts_signs.questions()
    assert len({fact.question for fact in known}) == len(known) > 200
    reward, fact = texts_signs.Knows(known), known[0]
    easy, hard = (family.format(fact.question) for family in (texts_signs.EASY, texts_signs.HARD))
    said = [f" {fact.answer}.", f" [{fact.answer}]", " [no]", " no [no]", " [no"]
    assert reward(said, [easy] * 5).tolist() == [1, 1, 0, 0, 0]
    assert reward(said, [hard] * 5).tolist() == [0, 1, 0.5, 0, 0]


def test_grpo_alone_costs_no_less_than_with_examples():
    size = texts_signs.Size()
    assert size.known == 3
    cost = lambda steps: 4 * steps * size.asked * size.drawn  # noqa: E731
    assert 3 * size.warm * size.known <= cost(size.more) < 3 * size.warm * size.known + cost(1)
    assert texts_signs.method_of(size, "grpo", ())[1] == size.steps + size.more
    method, steps = texts_signs.method_of(size, "sft_grpo", ())
    assert round(method.phases[0].share * steps) == size.warm


def test_solutions_are_right_and_stories_are_held_out():
    every = problems(200, 0)
    assert every == problems(200, 0) != problems(200, 1)
    assert not {story[:9] for story in STORIES} & {story[:9] for story in OTHER_STORIES}
    for one in [*every, *problems(200, 1, other=True)]:
        a, b, c = (int(word) for word in one.prompt.replace(".", " ").split() if word.isdigit())
        assert right(one.answer, one)
        assert right(f" It is {a + b - c}.", one)
        assert not right(f" It is {a + b}.", one)
        assert not right("", one)
    facts = invented(50, 0)
    assert len({fact.prompt for fact in facts}) == 50
    assert right(f"{facts[0].answer}. It is", facts[0])
    assert not right(" It is", facts[0])
    with pytest.raises(ValueError, match="ask for fewer"):
        invented(10**4, 0)


def test_the_better_rate_by_the_validating_examples_stands():
    rows = [
        {"kind": "problems", "method": method, "lr": lr, "valid": [v, v], "test": [t, t], "neutral": [-v, -t]}
        for method, lr, v, t in (
            ("sft", 1e-3, 0.2, 0.9), ("sft", 1e-2, 0.5, 0.4), ("dft", 1e-3, 0.6, 0.5), ("dft", 1e-2, 0.6, 0.1)
        )
    ]  # fmt: skip
    for every in (rows, rows[::-1]):
        assert [texts_dft.best(every, "problems", name)["lr"] for name in ("sft", "dft")] == [1e-2, 1e-3]
        torch.testing.assert_close(texts_dft.ahead(every, "problems"), torch.tensor([0.1, 0.1]).double())
