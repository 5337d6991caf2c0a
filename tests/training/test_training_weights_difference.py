"""Difference files, merging with learnt weights, and the report."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from weights_toys import examples, net, tokens

from steer.training import Run, tune
from steer.training.weights import merging
from steer.training.weights.difference import Difference
from steer.training.weights.methods import METHODS
from steer.training.weights.report import report, snapshot, update_rank


def sparse(model: nn.Module, seed: int, share: float = 0.3) -> dict[str, torch.Tensor]:
    """Parameters of which some entries are others, of all sizes; one tensor as it was, one changed whole."""
    generator = torch.Generator().manual_seed(seed)
    base = snapshot(model)
    after = {}
    for k, (name, w) in enumerate(base.items()):
        mask = torch.rand(w.shape, generator=generator) < (0.0, 1.0, share, share)[k % 4]
        change = torch.randn(w.shape, generator=generator) * 10 ** torch.empty(w.shape).uniform_(
            -6, 3, generator=generator
        )
        after[name] = torch.where(mask, w + change, w)
    return after


def test_a_difference_comes_off_bit_for_bit(tmp_path):
    """Through a file; addition alone would not undo itself."""
    model = examples().model
    base, after = snapshot(model), sparse(examples().model, 0)
    made = Difference.between(base, after)
    assert made.count == sum(int((after[name] != base[name]).sum()) for name in base)
    read = Difference.load(made.save(tmp_path / "d.safetensors"))
    remove = read.apply(model)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, after[name], rtol=1e-6, atol=1e-6)
        assert torch.equal(parameter != base[name], after[name] != base[name])
        assert torch.equal(read.tensor(name, base[name]), after[name] - base[name])
    undone = {name: parameter.detach() - (after[name] - base[name]) for name, parameter in model.named_parameters()}
    assert not all(torch.equal(w, base[name]) for name, w in undone.items())
    remove()
    assert all(torch.equal(parameter, base[name]) for name, parameter in model.named_parameters())


def test_differences_add_and_come_off_in_turn():
    model = examples().model
    base = snapshot(model)
    one, other = (Difference.between(base, sparse(model, seed)) for seed in (0, 1))
    removes = [each.apply(model) for each in (one, other)]
    after = snapshot(model)
    for remove in reversed(removes):
        remove()
    assert all(torch.equal(parameter, base[name]) for name, parameter in model.named_parameters())
    (one + other).apply(model)
    for name, parameter in model.named_parameters():
        scale = max(1.0, float(after[name].detach().abs().max()))
        assert torch.allclose(parameter, after[name], rtol=0, atol=4 * torch.finfo(torch.float32).eps * scale)
    assert (one + other).count <= one.count + other.count


def test_what_is_no_difference_for_a_model(tmp_path):
    from safetensors.torch import save_file

    made = Difference.between(snapshot(net(4, 3)), {n: w + 1 for n, w in snapshot(net(4, 3)).items()})
    with pytest.raises(ValueError, match=r"a difference of 12 entries of 0\.weight, and the model has 15"):
        made.apply(net(5, 3))
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        made.save(tmp_path / "d.pt")
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    (tmp_path / "t.safetensors").write_text("no tensors")
    for name in ("w", "t", "missing"):
        with pytest.raises(ValueError, match="is no difference file"):
            Difference.load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("method", ["speft", "lt_sft", "gps"])
def test_a_tuned_model_is_its_base_and_a_small_file(method, tmp_path):
    task, base = tokens(), snapshot(tokens().model)
    dials = {"gps": {"examples": 4}, "speft": {"amount": 50, "examples": 4}, "lt_sft": {"amount": 50}}[method]
    tuned = tune(task, METHODS[method](lr=0.01, **dials), Run(steps=4))
    file = Difference.between(base, snapshot(tuned.handle.merge())).save(tmp_path / "d.safetensors")
    other = tokens()
    Difference.load(file).apply(other.model)
    batch = task.batch(torch.Generator().manual_seed(0), 4)
    assert torch.allclose(other.logits(other.model, batch), task.logits(task.model, batch), rtol=1e-4, atol=1e-5)
    assert Difference.load(file).count <= tuned.count


@pytest.fixture
def files(tmp_path):
    """Of three models tuned from the net, each in its own way."""
    made = []
    for k in range(3):
        task, base = examples(), snapshot(examples().model)
        after = tune(task, METHODS["full"](lr=0.1), Run(steps=30, seed=k)).handle.merge()
        made.append(Difference.between(base, snapshot(after)).save(tmp_path / f"{k}.safetensors"))
    return made


def test_supermerges_gradient_is_its_closed_form():
    """dL / dw_ij = (1 - tanh^2 w) <dL / dtheta_j, tau_ij>, in float64."""
    task = examples(torch.float64)
    generator = torch.Generator().manual_seed(0)
    names = [name for name, _ in task.model.named_parameters()]
    vectors = {
        name: torch.randn(3, *p.shape, generator=generator, dtype=p.dtype) for name, p in task.model.named_parameters()
    }
    w = nn.Parameter(torch.randn(3, len(names), generator=generator, dtype=torch.float64))
    handle = merging.Merging(task.model, {"w": w}, lambda: None, lambda: None, vectors=vectors)
    batch = task.batch(generator, 16)
    task.loss(handle.run(w), batch).backward()
    merged = {name: value.detach().requires_grad_() for name, value in handle.tensors(w).items()}
    loss = task.loss(lambda x: functional_call(task.model, merged, (x,)), batch)
    gradients = dict(zip(names, torch.autograd.grad(loss, [merged[name] for name in names])))
    for j, name in enumerate(names):
        for i in range(3):
            wanted = (1 - w[i, j].tanh() ** 2) * (gradients[name] * vectors[name][i]).sum()
            assert w.grad[i, j].item() == pytest.approx(wanted.item(), rel=1e-10)


@pytest.mark.parametrize("lr", [0.3, 1.0])
def test_supermerge_starts_at_the_mean_or_better_and_never_ends_above_it(files, lr):
    """By the loss on its examples, also where steps are so long that it rises; the base is as it was until then."""
    task, base = examples(), snapshot(examples().model)
    mean = METHODS["supermerge"](files, sweep=False).phases[0].parametrise(task)
    parts = [Difference.load(file) for file in files]
    for name, value in mean.tensors(mean.parameters["w"]).items():
        average = base[name] + sum(part.tensor(name, base[name]) for part in parts) / 3
        assert torch.allclose(value, average, rtol=1e-6, atol=1e-6)
    batch = merging.validation(task, 32, 0)
    task = examples()
    tuned = tune(task, METHODS["supermerge"](files, lr=lr), Run(steps=12))
    begun = float(task.loss(mean.run(mean.parameters["w"]), batch))
    assert tuned.log[0]["loss"] <= begun
    assert all(torch.equal(p, base[name]) for name, p in task.model.named_parameters())
    merged = tuned.handle.merge()
    ended = float(task.loss(merged, batch))
    assert ended == pytest.approx(min(row["loss"] for row in tuned.log), rel=1e-5)
    assert ended < (begun if lr == 0.3 else tuned.log[-1]["loss"])
    assert not all(torch.equal(p, base[name]) for name, p in merged.named_parameters())


def test_a_resumed_merge_knows_the_best_that_was_seen(files):
    task = examples()
    handle = METHODS["supermerge"](files).phases[0].parametrise(task)
    seen = merging.Validation(handle, task, 32, 0)
    seen(torch.Generator(), 0)
    best, state = handle.best, seen.state_dict()
    handle.load({"w": torch.full_like(handle.start["w"], -3.0)})
    handle.best = {}
    again = merging.Validation(handle, task, 32, 0)
    again.load_state_dict(state)
    again(torch.Generator(), 1)
    assert torch.equal(handle.best["w"], best["w"])


def test_merging_in_a_tree_holds_no_more_than_a_group(files, tmp_path, monkeypatch):
    """Three models in groups of two: two merges, each of two differences."""
    loads: list[int] = []

    def counted(task, method, run):
        tuned = tune(task, method, run)
        loads.append(tuned.handle.parameters["w"].shape[0])
        return tuned

    monkeypatch.setattr(merging, "tune", counted)
    task = examples()
    made = merging.tree(task, files, METHODS["supermerge"], tmp_path / "tree", run=Run(steps=3))
    assert loads == [2, 2]
    batch = merging.validation(task, 32, 0)
    before = float(task.loss(task.model, batch))
    Difference.load(made).apply(task.model)
    assert float(task.loss(task.model, batch)) < before


def test_bad_input_of_merging(files, tmp_path):
    with pytest.raises(ValueError, match="no difference files to merge"):
        tune(examples(), METHODS["supermerge"](), Run(steps=1))
    with pytest.raises(ValueError, match="differences of one base"):
        tune(tokens(), METHODS["supermerge"](files), Run(steps=1))
    with pytest.raises(ValueError, match="groups of 1 of 3 files"):
        merging.tree(examples(), files, METHODS["supermerge"], tmp_path, group=1)


def test_ranks_of_updates():
    """Of five equal directions five hold 90 %, of ten nine; of sizes 3 and 1, whose squares are 9 and 1, one does."""
    generator = torch.Generator().manual_seed(0)
    for rank, wanted in ((5, 5), (10, 9)) * 20:
        q, _ = torch.linalg.qr(torch.randn(12, rank, generator=generator, dtype=torch.float64))
        assert update_rank(q @ q.T) == wanted
    assert update_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == 1
    assert update_rank(torch.diag(torch.tensor([3.0, 1.01, 0.0]))) == 2
    assert update_rank(torch.zeros(3, 3)) == 0


def test_a_report_compares_the_tuned_with_the_base():
    """LoRA of rank 1 changes rank 1; what was learnt and forgotten are differences of plain losses."""
    task, base = examples(), snapshot(examples().model)
    tuned = tune(task, METHODS["lora"](rank=1, alpha=2, lr=0.05), Run(steps=10))
    source = examples()
    source.labels = (source.labels + 1) % 4
    row = report(tuned, base, examples(), {"source": source}, examples=3, size=64)
    assert row.ranks == {"0.weight": 1, "2.weight": 1}
    assert row.trained == (8 + 12) + (12 + 4)
    assert row.changed == 8 * 12 + 12 * 4
    assert row.learnt > 0
    assert row.seconds > 0

    def mean(model, labels_of):
        generator = torch.Generator().manual_seed(1)
        return sum(float(labels_of.loss(model, labels_of.batch(generator, 64))) for _ in range(3)) / 3

    model, plain = task.model, examples().model
    assert row.learnt == pytest.approx(mean(plain, examples()) - mean(model, examples()), rel=1e-5)
    assert row.forgotten["source"] == pytest.approx(mean(model, source) - mean(plain, source), rel=1e-5)
