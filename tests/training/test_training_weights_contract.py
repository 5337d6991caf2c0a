"""What every method that is about weights must keep, on a net and on a Llama: one matrix of rows and laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from weights_toys import TASKS, Tokens

from steer.training import Method, Run, Tuned, tune
from steer.training.weights import attach
from steer.training.weights.difference import Difference
from steer.training.weights.merging import Merging
from steer.training.weights.methods import METHODS
from steer.training.weights.report import snapshot

KV: dict[str, Any] = {"net": {"targets": ("0",), "feedforward": ("2",)}, "llama": {}}
# of a row: its dials, and how many numbers it trains on the net 8 - 12 - 4 and on the Llama, by the sheet's formula
NET, LLAMA = 8 * 12 + 12 * 4, 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
PAIRS = (8 + 12) + (12 + 4), 2 * (2 * 64 + 2 * 48 + 3 * 80)  # in + out of all layers
BLOCKS = 3 * 3 * 4 + 3 * 4 * 2, 2 * (2 * 3 * 11 * 11 + 2 * 3 * 11 * 6 + 2 * 3 * 11 * 16 + 3 * 16 * 11)  # N' d1 d2
TURNS = (8 + 12) * (4 - 1) // 2, 2 * (6 * 32 + 48) * (4 - 1) // 2  # d (b - 1) / 2 of all inputs
FACTORS = 8 + 12, 2 * (6 * 32 + 48)  # two factors of blocks of 2: d (b - 1) m / 2
HUNDREDTH = -(-NET // 100), -(-LLAMA // 100)
ROWS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "full": ({}, (NET, LLAMA)),
    "lion": ({"lr": 1e-3}, (NET, LLAMA)),
    "lora": ({"rank": 2}, (2 * PAIRS[0], 2 * PAIRS[1])),
    "qlora": ({"rank": 2}, (2 * PAIRS[0], 2 * PAIRS[1])),
    "lora_one": ({"rank": 2, "damping": 1e-2}, (2 * PAIRS[0], 2 * PAIRS[1])),
    "lora_pro": ({"rank": 2, "lr": 1e-3}, (2 * PAIRS[0], 2 * PAIRS[1])),
    "corda": ({"rank": 2, "examples": 16}, (2 * PAIRS[0], 2 * PAIRS[1])),
    "chain_of_lora": ({"rank": 2, "links": 2}, (2 * PAIRS[0], 2 * PAIRS[1])),
    "diablo": ({"blocks": 3}, BLOCKS),
    "oft": ({"block": 4}, TURNS),
    "boft": ({"block": 2}, FACTORS),
    "ia3": ({}, (12 + 12, 2 * (16 + 16 + 48))),
    "t_few": ({}, (12 + 12, 2 * (16 + 16 + 48))),
    "gps": ({"examples": 4, "score": "contrastive", "biases": False}, (12 + 4, 2 * (32 + 2 * 16 + 32 + 2 * 48 + 32))),
    "speft": ({"examples": 4, "rounds": 2}, HUNDREDTH),
    "lt_sft": ({"anchor": 0.1}, HUNDREDTH),
    "gmt": ({"where": "update"}, (NET, LLAMA)),
    "cgnc": ({}, (NET, LLAMA)),
    "prograd": ({"rank": 2}, (2 * PAIRS[0], 2 * PAIRS[1])),
    "mixout": ({"p": 0.5}, (NET, LLAMA)),
    "sparse_mezo": ({"lr": 1e-3}, (NET // 4, LLAMA // 4)),
    "supermerge": ({"examples": 8}, (3 * 4, 3 * 2 * 7)),
}
STEPS = Run(steps=4, save_every=0.0)


def test_no_row_is_left_out():
    assert set(ROWS) == set(METHODS)


@pytest.fixture(params=TASKS)
def kind(request) -> str:
    return request.param


@pytest.fixture(params=ROWS)
def name(request) -> str:
    return request.param


@pytest.fixture
def task(kind, name, monkeypatch) -> Any:
    return fresh(kind, name, monkeypatch)


def fresh(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A task; the stand-in for a base in 4 bits is one that says so."""
    task = TASKS[kind]()
    if name == "qlora":
        task.model.is_loaded_in_4bit = True
        monkeypatch.setattr(attach, "find_spec", lambda module: module)
    return task


@pytest.fixture
def method(kind, name, tmp_path, request) -> Method:
    """The row, with weight decay where it has that."""
    row, dials = METHODS[name], dict(ROWS[name][0])
    if name in ("ia3", "t_few"):
        dials |= KV[kind]
    if name == "supermerge":
        dials["files"] = tuned_files(kind, tmp_path)
    if "decay" in row.__annotations__:
        dials["decay"] = 0.1
    return row(**dials)


def tuned_files(kind: str, folder: Any) -> tuple[str, ...]:
    """Differences of three tuned models; of the net's biases too."""
    files = []
    for seed in range(3):
        task, generator = TASKS[kind](), torch.Generator().manual_seed(seed)
        base = {n: p for n, p in snapshot(task.model).items() if kind == "net" or "proj" in n}
        after = {n: p + 0.05 * torch.randn(p.shape, generator=generator) for n, p in base.items()}
        files.append(str(Difference.between(base, after).save(folder / f"{seed}.safetensors")))
    return tuple(files)


def attached(method: Method, task: Any) -> Any:
    """What the first phase trains, as `tune` makes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method.phases[0].parametrise(task)


def outputs(task: Any, model: Any) -> Tensor:
    with torch.no_grad():
        return task.logits(model, task.batch(torch.Generator().manual_seed(9), 8))


def shaken(handle: Any) -> dict[str, Tensor]:
    """Trained values that are far from neutral."""
    generator = torch.Generator().manual_seed(3)
    return {n: w + 0.1 * torch.randn(w.shape, generator=generator) for n, w in handle.start.items()}


def running(handle: Any) -> Any:
    """The model as the method runs it."""
    return handle.run(handle.parameters["w"]) if isinstance(handle, Merging) else handle.model


def near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1000 * torch.finfo(a.dtype).eps * b.abs().max())


def test_at_its_start_it_is_the_model(name, method, task):
    """LoRA-One starts a step away, SUPERMERGE at a mean; CorDA takes its part out of the base, to rounding."""
    before = outputs(task, task.model)
    after = outputs(task, running(attached(method, task)))
    if name in ("lora_one", "supermerge"):
        assert not near(after, before)
    else:
        assert near(after, before) if name in ("corda", "ia3", "t_few", "oft") else torch.equal(after, before)


def test_it_trains_as_many_numbers_as_its_formula_says(kind, name, method, task):
    assert tune(task, method, STEPS).count == ROWS[name][1][list(TASKS).index(kind)]


@pytest.mark.parametrize(
    ("name", "dials", "count"),
    [
        ("lora", {"rank": 8}, 2_442_240),
        ("ia3", {}, 57_600),
        ("diablo", {"blocks": 64, "targets": ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")}, 1_088_640),
    ],
)
def test_counts_of_the_sheet_on_the_shape_of_smollm2(name, dials, count):
    """135M parameters, none of them in memory."""
    config = hf.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        task = Tokens(hf.LlamaForCausalLM(config), torch.zeros(1, 8, dtype=torch.long))
        assert METHODS[name](**dials).phases[0].parametrise(task).count == count


def test_what_is_frozen_stays_bit_for_bit(name, method, task):
    """Under AdamW with decay 0.1, and what is selected moves in every tensor."""
    seen: dict[str, Any] = {}

    def spied(phase, first):
        def parametrise(task):
            handle = phase.parametrise(task)
            seen["handle"], seen["before"] = handle, {p: p.detach().clone() for p in handle.model.parameters()}
            return handle

        def select(handle, task):
            seen["masks"] = phase.select(handle, task)
            seen["before"] = {p: p.detach().clone() for p in handle.model.parameters()}
            return seen["masks"]

        return replace(
            phase,
            parametrise=parametrise if first else None,
            select=phase.select and select,
            end="keep" if phase.end == "merge" else phase.end,
        )

    phases = method.phases[:1] if method.phases[0].end == "merge" else method.phases
    phases = tuple(spied(phase, k == 0) for k, phase in enumerate(phases))
    shares = [1.0] if len(phases) == 1 else [0.5, 0.5]
    phases = tuple(replace(phase, share=share) for phase, share in zip(phases, shares))
    tune(task, replace(method, phases=phases), STEPS)
    masks, trained = seen.get("masks", {}), {id(p): n for n, p in seen["handle"].parameters.items()}
    for parameter, before in seen["before"].items():
        same = parameter == before
        if id(parameter) not in trained:
            assert same.all()
        elif (mask := masks.get(trained[id(parameter)])) is not None:
            assert same[~mask].all()
            assert not mask.any() or not same[mask].all()
        elif name not in ("prograd", "lora_pro"):  # at B = 0, A has no gradient in the first step
            assert not same.all()


def test_merged_it_is_what_it_was_attached(name, method, task):
    """After values that are not neutral, since at its start any adapter would pass."""
    base = outputs(task, task.model)
    handle = attached(method, task)
    handle.load(shaken(handle))
    before = outputs(task, running(handle))
    keys = set(TASKS["net"]().model.state_dict()) if isinstance(task.model, nn.Sequential) else None
    merged = handle.merge()
    assert near(outputs(task, merged), before)
    assert not near(before, base)
    assert keys is None or set(merged.state_dict()) == keys


def test_detached_it_is_the_base_bit_for_bit(name, method, task):
    base = {n: w.clone() for n, w in task.model.state_dict().items()}
    types = [type(module) for module in task.model.modules()]
    handle = attached(method, task)
    handle.load(shaken(handle))
    model = handle.detach()
    assert [type(module) for module in model.modules()] == types
    assert model.state_dict().keys() == base.keys()
    assert all(torch.equal(w, base[n]) for n, w in model.state_dict().items())


def test_weights_go_through_a_file(kind, name, method, task, tmp_path, monkeypatch):
    handle = attached(method, task)
    handle.load(shaken(handle))
    save_file(handle.weights(), tmp_path / "w.safetensors")
    other = fresh(kind, name, monkeypatch)
    again = attached(method, other)
    again.load(load_file(tmp_path / "w.safetensors"))
    assert torch.equal(outputs(other, running(again)), outputs(task, running(handle)))


def logged(tuned: Tuned) -> list[float]:
    return [row["loss"] for row in tuned.log]


class Watched:
    """A loss that counts its calls, and is interrupted at a step."""

    def __init__(self, loss: Any, stop: int | None = None):
        self.loss, self.stop, self.calls = loss, stop, 0
        if hasattr(loss, "state_dict"):
            self.state_dict, self.load_state_dict = loss.state_dict, loss.load_state_dict

    def __call__(self, generator: torch.Generator, step: int) -> Any:
        if step == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        return self.loss(generator, step)


def test_a_stopped_run_goes_on_to_the_same_result(kind, name, method, task, tmp_path, monkeypatch):
    """Killed before the last step, gone on with a fresh model: equal to a run in one go, which so is deterministic."""
    whole = tune(task, method, STEPS)
    *before, last = method.phases
    seen: list[Watched] = []

    def watched(stop: int | None) -> Method:
        def objective(handle, task):
            seen.append(Watched(last.objective(handle, task), stop))
            return seen[-1]

        return replace(method, phases=(*before, replace(last, objective=objective)))

    final = STEPS.steps // len(method.phases) - 1
    with pytest.raises(KeyboardInterrupt):
        tune(fresh(kind, name, monkeypatch), watched(final), STEPS, tmp_path / "run")
    resumed = tune(fresh(kind, name, monkeypatch), watched(None), STEPS, tmp_path / "run")
    assert seen[1].calls == (2 if name == "sparse_mezo" else 1)
    assert logged(resumed) == logged(whole)
    assert all(torch.equal(w, whole.last[n]) for n, w in resumed.last.items())
