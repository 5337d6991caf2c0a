"""`steer vectors` and `steer chat`, on a tiny language model in a folder."""

import json

import pytest
import tiny_models

from steer.cli import main, suite
from steer.language import files

PAIRS = [{"prompt": f"Is the {a} {b}?", "positive": " Yes", "negative": " No"} for a in ("cat", "dog") for b in "abcde"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.text_model("llama").save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return str(path)


@pytest.fixture(scope="module")
def vector(model, pairs, tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "v.safetensors"
    main(["vectors", "fit", pairs, "--model", model, "--out", str(path), "--sites", "1", "2"])
    return str(path)


def fails(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_vector_is_fitted_to_a_share_of_the_pairs(model, pairs, tmp_path, capsys):
    for method in ("pca", "grains"):
        path = tmp_path / f"{method}.safetensors"
        args = ["--model", model, "--method", method, "--sites", "1", "--pairs", "6", "--k", "2", "--out", str(path)]
        main(["vectors", "fit", pairs, *args])
        found = files.load(path)
        assert found.provenance["examples"] == "6"
        assert [str(place) for place in found.sites] == ["1"]
    assert "6 pairs, method grains" in " ".join(capsys.readouterr().out.split())


def test_apply_shows_the_plain_answer_first_and_strength_0_is_plain(model, vector, capsys):
    args = ["--model", model, "--tokens", "4", "--strength", "0", "0.5"]
    main(["vectors", "apply", vector, "Is it red?", *args, "--sites", "2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "Is it red?" in line]
    plain, zero, pushed = (" ".join(line.split()[3:]) for line in lines)
    assert plain.removeprefix("0 ") == zero.removeprefix("0 ") != pushed.removeprefix("0.5 ")


def test_show_and_compare_tell_what_is_in_the_files(vector, tmp_path, capsys):
    main(["vectors", "show", vector])
    out = capsys.readouterr().out
    assert "method: mean" in out
    assert "examples: 10" in out
    turned = files.save(-files.load(vector), tmp_path / "turned.safetensors")
    main(["vectors", "compare", vector, vector, str(turned)])
    assert "1.000" in (out := capsys.readouterr().out)
    assert "-1.000" in out


def test_a_sweep_is_drawn_and_recorded(model, pairs, vector, tmp_path, capsys):
    args = ["--model", model, "--pairs", "4", "--tokens", "3", "--prompts", "Is it?", "--out", str(tmp_path)]
    main(["vectors", "sweep", vector, pairs, *args, "--strengths", "0.4", "-0.4", "0"])
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["strength"] for row in rows] == [-0.4, 0.0, 0.4]
    assert rows[0]["margin"] < rows[1]["margin"] < rows[2]["margin"]
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_the_suite_sets_every_measure_beside_the_plain_model(model, pairs, vector, tmp_path, capsys):
    pytest.importorskip("vaderSentiment")
    csv = tmp_path / "choices.csv"
    header = "Question,Best Answer,Best Incorrect Answer,Incorrect Answers\n"
    csv.write_text(header + "".join(f"Is the {a} red?,Yes,No,No; A cat\n" for a in ("cat", "dog", "sun")))
    args = ["--model", model, "--questions", "3", "--tokens", "3", "--prompts", "Is it?", "Is she?"]
    main(["vectors", "suite", vector, str(csv), pairs, *args, "--strengths", "0", "4", "--out", str(tmp_path / "out")])
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["measure"] for row in rows[::2]] == ["choices", "pairs", suite.SENTIMENT, suite.NEUTRAL]
    assert all(row["difference"] == "0.000 [0.000, 0.000]" for row in rows[::2])  # strength 0 is the model
    agreement, neutral = rows[3], rows[7]
    assert agreement["steered"] == "1.000"  # it was fitted to say Yes
    assert neutral["difference"] != "0.000 [0.000, 0.000]"


def test_chat_answers_and_turns_the_dial(model, vector, monkeypatch, capsys):
    said = iter(["Is it red?", "/strength 0.3", "/strength much", "Is it blue?", ""])
    asked = []
    monkeypatch.setattr("builtins.input", lambda prompt: (asked.append(prompt), next(said))[1])
    main(["chat", "--model", model, "--vector", vector, "--tokens", "3"])
    assert asked == ["[0.1] > "] * 2 + ["[0.3] > "] * 3
    assert "it stays 0.3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("vectors", "fit", "nowhere.jsonl"), "no file nowhere.jsonl"),
        (("vectors", "fit", "{pairs}", "--method", "men"), "'mean'"),
        (("vectors", "fit", "{pairs}", "--model", "smolm2"), "no folder and no hub id"),
        (("vectors", "fit", "{pairs}", "--pairs", "50"), "ask for fewer"),
        (("vectors", "apply", "{vector}"), "no prompts"),
        (("vectors", "apply", "{vector}", "Hello", "--sites", "7"), "sites ['7']"),
        (("vectors", "compare", "{vector}"), "at least two"),
        (("vectors", "suite", "{vector}", "{pairs}", "--prompts", "one"), "two prompts for an interval"),
        (("vectors", "suite", "{vector}", "{pairs}", "--questions", "50"), "ask for fewer"),
        (("vectors", "show", "v.bin"), "ends in one of"),
        (("chat", "--model", "nothing"), "no folder and no hub id"),
    ],
)
def test_mistakes_are_one_line(args, expected, pairs, vector, capsys):
    assert expected in fails(capsys, *(arg.format(pairs=pairs, vector=vector) for arg in args))


def test_other_json_is_told_what_was_expected(tmp_path, capsys):
    path = tmp_path / "other.jsonl"
    path.write_text('{"text": "no pair"}\n')
    assert "expected prompt, positive and negative" in fails(capsys, "vectors", "fit", str(path))
