"""`steer generate --tuned` on folders of `steer train`: every kind of file, a search on top, and what it refuses."""

import json
import shutil

import pytest
import tiny
import torch
from diffusers import DDIMScheduler

from steer.cli import main, record
from steer.cli.generate import put

TRAIN = ["--prompts", "red", "blue", "--sampling", "2", "--check", "2", "--steps", "2", "--lr", "0.1"]
METHODS = {
    "draft_k": ["--reward", "colour:red", "--dial", "rank=2"],
    "texforce": ["--reward", "colour:red", "--dial", "rank=2", "--dial", "prompts=1", "--dial", "each=2"],
    "coft_sft": ["--pictures", "noto", "--dial", "block=4", "--dial", "levels=1"],
    "emu": ["--pictures", "noto", "--dial", "levels=1"],
    "softrepa": ["--pictures", "noto"],
}
FILES = dict.fromkeys(METHODS, "adapter.safetensors") | {
    "emu": "difference.safetensors",
    "softrepa": "trained.safetensors",
}
GENERATE = ["generate", "red", "--reward", "colour:red", "--steps", "2", "-n", "2", "--block", "1", "--images", "1"]


def saved(folder, channels=(32, 64)) -> str:
    pipe = tiny.pipeline(DDIMScheduler(num_train_timesteps=20, clip_sample=False))
    if channels != (32, 64):
        pipe.register_modules(unet=tiny.unet(channels))
    pipe.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """Method -> its folder, trained when first asked for."""
    made = {}

    def folder_of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            main(["train", name, "--model", model, *METHODS[name], *TRAIN, "--out", str(made[name])])
        return made[name]

    return folder_of


def loaded(model):
    import steer

    pipe = steer.load(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe) -> torch.Tensor:
    made = pipe("red", num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(made.images)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_training_wrote_is_put_on_a_fresh_pipeline(name, trained, model, monkeypatch):
    """The pictures are those of the model as training left it."""
    folder, tuned = trained(name), []
    assert (folder / FILES[name]).is_file()
    monkeypatch.setattr("steer.cli.train.Train._write", lambda self, out, trainee, *rest: tuned.append(trainee.pipe))
    main(["train", name, "--model", model, *METHODS[name], *TRAIN, "--out", str(folder)])  # goes on from its end
    plain, fresh = picture(loaded(model)), loaded(model)
    put(folder, fresh)
    torch.testing.assert_close(picture(fresh), picture(tuned[0]))
    assert (picture(fresh) - plain).abs().max() > 1e-3


def test_a_tuned_pipeline_is_steered(trained, model, tmp_path):
    """Untuned, tuned, and tuned with a search: three results, of which the last has the search's rows."""
    runs = {"plain": [], "tuned": ["--tuned", str(trained("draft_k"))]}
    runs["steered"] = runs["tuned"]
    rewards, rows = {}, {}
    for name, given in runs.items():
        out, search = tmp_path / name, ["code", "--eta", "1"] if name == "steered" else ["best-of-n"]
        main([*GENERATE, "--model", model, *given, "--control", *search, "--out", str(out)])
        (row,) = record.Rows(out / "results.jsonl").rows
        rewards[name], rows[name] = row["reward"], row["ledger"]["rows"]
    assert row["tuned"] == str(trained("draft_k"))
    assert len(set(rewards.values())) == 3
    assert rows == {"plain": 8, "tuned": 8, "steered": 2 * (2 * (2 - 1) + 1)}


def refused(capsys, tmp_path, folder, model) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*GENERATE, "--model", model, "--tuned", str(folder), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("name", "spoil", "expected"),
    [
        ("draft_k", lambda folder: shutil.rmtree(folder), "is no folder"),
        ("draft_k", lambda folder: (folder / "adapter.safetensors").unlink(), "has no file of a finished training"),
        ("draft_k", lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json is missing"),
        ("draft_k", lambda folder: (folder / "run.json").write_text('{"method":'), "run.json cannot be read"),
        ("draft_k", lambda folder: (folder / "run.json").write_text("{}\n"), "run.json cannot be read"),
        ("draft_k", lambda folder: cut(folder / "adapter.safetensors"), "adapter.safetensors is damaged"),
        ("emu", lambda folder: cut(folder / "difference.safetensors"), "no difference file"),
        ("softrepa", lambda folder: cut(folder / "trained.safetensors"), "trained.safetensors is damaged"),
        ("softrepa", lambda folder: (folder / "run.json").unlink(), "pass its parametrise"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(name, spoil, expected, trained, model, tmp_path, capsys):
    folder = tmp_path / "spoilt"
    shutil.copytree(trained(name), folder)
    spoil(folder)
    message = refused(capsys, tmp_path, folder, model)
    assert expected in message
    assert str(folder) in message


@pytest.mark.parametrize("name", ["draft_k", "emu"])
def test_a_folder_of_another_model_is_refused_and_leaves_that_as_it_was(name, trained, model, tmp_path, capsys):
    other = saved(tmp_path / "other", (32, 96))
    message = refused(capsys, tmp_path, trained(name), other)
    assert "does not go on this StableDiffusionPipeline" in message
    assert f"It was trained with --model {model}." in message
    pipe = loaded(other)
    before = picture(pipe)
    with pytest.raises(ValueError, match="does not go on"):
        put(trained(name), pipe)
    assert torch.equal(picture(pipe), before)
    assert json.loads((trained(name) / "run.json").read_text())["model"] == model
