"""`steer train` on tiny models in folders: what it writes, that it goes on, and what it says to mistakes."""

import json

import pytest
import tiny
import tiny_models
from diffusers import DDIMScheduler

from steer.cli import main, record
from steer.training.methods import METHODS

PICTURES = ["draft_k", "--reward", "colour:red", "--prompts", "red", "blue", "--sampling", "2", "--check", "2"]
TEXTS = ["--check", "2", "--tokens", "3", "--dial", "rank=2"]
EXAMPLES = [{"prompt": f"Is the {a} {b}?", "answer": " Yes"} for a in ("cat", "dog") for b in "abc"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.pipeline(DDIMScheduler(num_train_timesteps=20)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.text_model("llama").save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in EXAMPLES))
    return str(path)


def row_of(out) -> dict:
    (row,) = record.Rows(out / "results.jsonl").rows
    return row


def fails(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["train", *args])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_the_list_has_every_method_with_its_paper(capsys, monkeypatch):
    monkeypatch.setattr("steer.cli.show.console.width", 400)
    main(["train", "--list"])
    lines = capsys.readouterr().out.splitlines()
    for name, row in METHODS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert row.paper in line


def test_a_pipeline_is_trained_and_a_longer_call_goes_on(pipeline, tmp_path, capsys):
    args = [*PICTURES, "--model", pipeline, "--dial", "k=2", "--batch", "2", "--lr", "0.01"]
    for out, steps in (("two", "2"), ("two", "4"), ("one", "4")):
        main(["train", *args, "--steps", steps, "--out", str(tmp_path / out)])
    one, two = (tmp_path / out for out in ("one", "two"))
    assert (one / "adapter.safetensors").read_bytes() == (two / "adapter.safetensors").read_bytes()
    log = record.Rows(two / "log.jsonl").rows
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    row = row_of(two)
    assert row["dials"] == {"k": 2, "batch": 2, "rank": 8, "lr": 0.01}
    assert row["cost"] == sum(row["rows"] + 2 * row["backward_rows"] for row in log) > 0
    assert len(row["reward"]["before"]) == 2
    assert row["reward"]["before"] != row["reward"]["after"]
    assert {"curve.png", "pictures.png", "run.json"} <= {path.name for path in two.iterdir()}
    assert "everything is in" in capsys.readouterr().out


def test_a_language_model_is_trained_on_examples(model, examples, tmp_path):
    for name in ("dft", "lora"):
        out = tmp_path / name
        main(["train", name, "--model", model, "--examples", examples, "--steps", "3", *TEXTS, "--out", str(out)])
        row = row_of(out)
        assert {"log p of answers", "log p of neutral texts"} <= row.keys()
        assert sum(row["log p of answers"]["after"]) > sum(row["log p of answers"]["before"])
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in out.iterdir()}


def test_a_language_model_is_trained_on_a_reward(model, tmp_path):
    (tmp_path / "prompts.txt").write_text("the dog\n\nIs it red?\n")
    args = ["--model", model, "--prompts", str(tmp_path / "prompts.txt"), "--reward", "regex:a", *TEXTS]
    main(["train", "grpo", *args, "--dial", "prompts=2", "--dial", "each=4", "--steps", "2", "--out", str(tmp_path)])
    row = row_of(tmp_path)
    assert len(row["reward"]["after"]) == 2
    assert row["unit"] == "tokens"
    assert all(0 <= line["idle"] <= 1 for line in record.Rows(tmp_path / "log.jsonl").rows)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["drafft"], "Did you mean 'draft'"),
        ([], "unknown method ''"),
        (["draft_k", "--dial", "kk=2"], "unknown dial of draft_k 'kk'"),
        (["draft_k", "--dial", "k"], "expected NAME=VALUE"),
        (["draft_k", "--dial", "k=many"], "expected int"),
        (["ddpo", "--batch", "2"], "ddpo has no batch: set prompts, each,"),
        (["draft_k", "--steps", "0"], "expected steps"),
        (["draft_k", "--check", "1"], "at least 2"),
        (["draft_k", "--model", "nothing"], "no folder and no hub id"),
        (["dft"], "nothing to learn from"),
        (["dft", "--examples", "nowhere.jsonl"], "no file nowhere.jsonl"),
        (["dft", "--examples", "{examples}", "--check", "6"], "6 prompts, and --check holds 6 out"),
        (["grpo", "--prompts", "a", "--reward", "clip"], "unknown reward 'clip'"),
        (["sft", "--pictures", "nowhere"], "no folder 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(args, expected, model, pipeline, examples, tmp_path, capsys):
    args = [arg.format(examples=examples) for arg in args]
    kind = METHODS[args[0]].kind if args and args[0] in METHODS else "diffusion"
    given = [] if "--model" in args else ["--model", pipeline if kind == "diffusion" else model]
    assert expected in fails(capsys, *args, *given, "--out", str(tmp_path))


def test_a_folder_of_another_run_is_refused(model, examples, tmp_path, capsys):
    args = ["--model", model, "--examples", examples, "--steps", "1", *TEXTS, "--out", str(tmp_path)]
    main(["train", "dft", *args])
    assert "holds a run with {'method': 'dft'" in fails(capsys, "text_sft", *args)
    assert "'dials'" in fails(capsys, "dft", *args, "--lr", "1")
