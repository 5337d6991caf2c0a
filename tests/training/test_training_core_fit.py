"""The loop: a run that was stopped goes on bit for bit, and what cannot go on says why."""

import math
from dataclasses import replace

import pytest
import torch
from core_toys import RUN, Regression, net, same, trained

from steer.training import Run, fit, own


@pytest.fixture(scope="module")
def whole():
    return trained()


class Stop(Exception):
    """What happens to a run from outside."""


def stopping(at: int):
    """A loss whose run ends at the second batch of a step, in the middle of its update."""

    class Stopped(Regression):
        calls = 0

        def __call__(self, generator, step):
            found = super().__call__(generator, step)
            self.calls += step == at
            if self.calls == 2:
                raise Stop
            return found

    return Stopped


@pytest.mark.parametrize("at", range(RUN.steps))
def test_a_run_stopped_in_the_middle_of_any_step_goes_on_to_the_same_weights(at, whole, tmp_path):
    with pytest.raises(Stop):
        trained(tmp_path, loss=stopping(at))
    handle, log = trained(tmp_path)
    assert same(handle.weights(), whole[0].weights())
    assert log == whole[1]


@pytest.mark.parametrize("optim", [torch.optim.AdamW, torch.optim.LBFGS], ids=["one call", "many calls of the closure"])
def test_a_run_in_pieces_is_the_whole_run(optim, tmp_path):
    expected, log = trained(optim=optim)
    for until in (0, 1, 1, 4):
        assert trained(tmp_path, until, optim=optim)[1] == log[:until]
    handle, found = trained(tmp_path, optim=optim)
    assert same(handle.weights(), expected.weights())
    assert found == log


def test_a_run_that_is_further_than_asked_stays_where_it_is(tmp_path):
    ahead, log = trained(tmp_path, 4)
    handle, again = trained(tmp_path, 2)
    assert same(handle.weights(), ahead.weights())
    assert again == log


def test_a_finished_run_is_not_run_again(whole, tmp_path):
    trained(tmp_path)
    handle, log = trained(tmp_path, loss=stopping(0))
    assert same(handle.weights(), whole[0].weights())
    assert log == whole[1]


def test_a_longer_run_goes_on_from_a_shorter_one(whole, tmp_path):
    trained(tmp_path, run=replace(RUN, steps=3))
    assert same(trained(tmp_path)[0].weights(), whole[0].weights())


def test_saving_changes_nothing(whole, tmp_path):
    seldom = replace(RUN, save_every=1e9)
    assert same(trained(tmp_path, run=seldom)[0].weights(), whole[0].weights())


def test_the_start_of_a_resumed_run_is_that_of_the_first(tmp_path):
    first, _ = trained(tmp_path, 3)
    model = net()
    torch.nn.init.zeros_(model[0].weight)
    handle = own(model)
    fit(handle, Regression(model), torch.optim.AdamW(model.parameters()), RUN, tmp_path)
    assert same(handle.start, first.start)


def test_losses_are_averaged_before_a_step():
    """SGD on two batches moves by the mean of their gradients."""
    model, points = net(), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    handle, batches = own(model), iter(points)
    fit(
        handle,
        lambda generator, step: (model(next(batches)).square().mean(), {}),
        torch.optim.SGD(model.parameters(), lr=0.1),
        Run(steps=1, accumulate=2, clip=None),
    )
    other = net()
    (sum(other(x).square().mean() for x in points) / 2).backward()
    for mine, theirs in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad)


def ones(clip: float | None, warmup: int = 0, steps: int = 1) -> list[float]:
    """How far SGD at rate 1 goes at each step against a gradient of 2 in each of four entries, whose norm is 4."""
    weight = torch.nn.Linear(4, 1, bias=False)
    handle, places = own(weight), [weight.weight[0, 0].item()]

    def loss(generator, step):
        places.append(weight.weight[0, 0].item())
        return 2 * weight.weight.sum(), {}

    fit(handle, loss, torch.optim.SGD(weight.parameters(), lr=1.0), Run(steps=steps, clip=clip, warmup=warmup))
    places = [*places[1:], weight.weight[0, 0].item()]
    return [a - b for a, b in zip(places, places[1:])]


def test_the_rate_rises_to_its_own_value():
    assert ones(None, warmup=3, steps=6) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0], rel=1e-6)


def test_the_whole_gradient_is_cut_to_its_norm():
    assert ones(1.0) == pytest.approx([0.5], rel=1e-5)  # torch adds 1e-6 to the norm
    assert ones(8.0) == pytest.approx([2.0], rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_the_weights_stay(value, tmp_path):
    class Broken(Regression):
        def __call__(self, generator, step):
            found, noted = super().__call__(generator, step)
            return (found * value if step == 2 else found), noted

    with pytest.raises(ValueError, match=f"the loss became {value} at step 2; lower the learning rate"):
        trained(tmp_path, loss=Broken)
    two, _ = trained(until=2)
    assert same(trained(tmp_path, until=2)[0].weights(), two.weights())


@pytest.mark.parametrize("other", [{"accumulate": 1}, {"clip": None}, {"warmup": 0}, {"seed": 6}])
def test_a_checkpoint_of_a_run_with_other_settings_is_refused(other, tmp_path):
    trained(tmp_path, 2)
    with pytest.raises(ValueError, match=f"holds a run with .*{next(iter(other))}.*choose another folder"):
        trained(tmp_path, run=replace(RUN, **other))


def test_a_checkpoint_of_another_parametrisation_is_refused(tmp_path):
    trained(tmp_path, 2)
    model = net()
    handle = own(model, lambda name, parameter: "weight" in name)
    with pytest.raises(ValueError, match="weights of other names"):
        fit(handle, Regression(model), torch.optim.AdamW(handle.parameters.values()), RUN, tmp_path)


def flipped(path):
    """One bit in the middle of the trained values, which torch.load would not notice."""
    content = bytearray(path.read_bytes())
    at = content.find(torch.load(path, weights_only=True)["weights"]["0.weight"].numpy().tobytes())
    assert at > 0
    content[at + 6] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [flipped, cut, emptied])
def test_a_damaged_checkpoint_is_left_out_for_the_one_before_it(harm, whole, tmp_path):
    trained(tmp_path, 4)
    harm(tmp_path / "last.pt")
    with pytest.warns(UserWarning, match=r"last\.pt is damaged and was left out"):
        handle, log = trained(tmp_path)
    assert same(handle.weights(), whole[0].weights())
    assert log == whole[1]


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_where_both_checkpoints_are_damaged_nothing_is_begun(tmp_path):
    trained(tmp_path, 4)
    for name in ("last.pt", "previous.pt"):
        cut(tmp_path / name)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read; delete the folder to begin anew"):
        trained(tmp_path)


def test_a_run_killed_between_two_names_has_the_previous_checkpoint(whole, tmp_path):
    trained(tmp_path, 4)
    (tmp_path / "last.pt").unlink()
    assert same(trained(tmp_path)[0].weights(), whole[0].weights())


def test_memory_that_runs_out_names_the_dials_that_need_less():
    class Large(Regression):
        def __call__(self, generator, step):
            raise torch.OutOfMemoryError("Tried to allocate 80 GiB.")

    with pytest.raises(torch.OutOfMemoryError, match=r"80 GiB.*smaller batch.*accumulate.*checkpointing.*fewer steps"):
        trained(loss=Large)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"accumulate": 0}, {"warmup": -1}, {"clip": 0.0}])
def test_a_run_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match="expected steps and accumulate of at least 1, warmup >= 0, clip > 0 or None"):
        Run(**bad)
