"""Noise belongs to the particle: it depends on the generator's state and the particle's number, and on nothing else."""

import pytest
import torch
from toys import Gather, first, gaussian, run, three_modes

from steer.diffusion.controllers.search import Every, Search, Value, code
from steer.diffusion.noise import DrawPerParticle, ParticleNoise, key
from steer.pick import multinomial, one


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_particles_draw_the_same_whatever_their_number(n):
    """Over two draws and two prompts; particle 0 is the plain call."""
    few, many, plain = ParticleNoise(n, (g := generator())), ParticleNoise(7, (h := generator())), generator()
    for _ in range(2):
        a, b = (noise.draw(lambda g=g: torch.randn(2, 3, 5, generator=g)) for noise, g in ((few, g), (many, h)))
        assert torch.equal(a.reshape(2, n, 3, 5), b.reshape(2, 7, 3, 5)[:, :n])
        assert torch.equal(a.reshape(2, n, 3, 5)[:, 0], torch.randn(2, 3, 5, generator=plain))


def test_no_two_particles_draw_alike():
    noise = ParticleNoise(4, g := generator())
    drawn = torch.cat([noise.draw(lambda: torch.randn(3, 2, generator=g)) for _ in range(2)])
    assert len(drawn.flatten().unique()) == drawn.numel()


def test_a_second_call_has_new_noise():
    """As with a plain call, the same generator gives the next run other particles, and the same seed the same ones."""
    g = generator()
    before, again = run(gaussian(), n=3, generator=g, steps=4).x, run(gaussian(), n=3, generator=g, steps=4).x
    assert (before != again).all()
    assert torch.equal(before, run(gaussian(), n=3, generator=generator(), steps=4).x)


def test_keys_read_the_state_and_consume_nothing():
    g = generator()
    state = g.get_state()
    assert key(g, 1) == key(g, 1) != key(g, 2)
    assert torch.equal(g.get_state(), state)
    assert 0 <= key(g, 3) < 2**63
    torch.manual_seed(5)
    assert key(None, 1) == key(g, 1)


@pytest.mark.parametrize("pick", [one, multinomial])
def test_picks_and_gathers_consume_no_noise_of_particles(pick):
    """A run with random picks and gathers leaves the particles' generators where a run without them does."""
    flat = Search(lambda x, prompts: torch.zeros(len(x)), Every(2), Value(), pick)
    kept, seen = run(gaussian(), n=4, steps=6), run(gaussian(), [flat, Gather((0, 1, 2, 3), 4)], n=4, steps=6)
    assert torch.equal(
        *(s.run.noise.draw(lambda s=s: torch.randn(1, 1, generator=s.run.noise.generator)) for s in (kept, seen))
    )


def test_block_length_does_not_move_the_noise():
    """CoDe's own code wastes draws on its look-ahead, so there two block lengths have different noise."""
    ends = [run(three_modes(), code(first, b), n=4, steps=12).run.noise for b in (2, 6)]
    assert torch.equal(*(e.draw(lambda e=e: torch.randn(1, 2, generator=e.generator)) for e in ends))


def test_pruned_slots_share_the_noise_of_their_speaker():
    inf = torch.inf
    controller = Gather((0, 1, 1, 0), 2, (0.0, 0.0, -inf, -inf))
    x = run(gaussian(), controller, n=4, steps=8).x
    assert torch.equal(x[[2, 3]], x[[1, 0]])
    assert x[0] != x[1]


@pytest.mark.parametrize("shape", [(6, 4, 2), [6, 4, 2], torch.Size((6, 4, 2))])
def test_draw_per_particle_answers_draws_of_its_shape(shape):
    g, plain = generator(), generator()
    noise = ParticleNoise(3, g)
    with DrawPerParticle(noise, (6, 4, 2)):
        answered = torch.randn(shape, generator=g, dtype=torch.float64)
        by_name = torch.randn(size=tuple(shape), generator=g)
    assert noise.drawn == 2
    assert torch.equal(answered[[0, 3]], torch.randn((2, 4, 2), generator=plain, dtype=torch.float64))
    assert torch.equal(by_name[[0, 3]], torch.randn((2, 4, 2), generator=plain))


@pytest.mark.parametrize("shape", [(6,), (6, 2, 4), (6, 4, 2, 1), (4, 2), (3, 4, 2)])
def test_draw_per_particle_lets_every_other_shape_through(shape):
    """The leading size alone is no sign: a Brownian tree draws (4, 16, 16) for one row of 4 channels."""
    g = generator()
    noise = ParticleNoise(3, g)
    with DrawPerParticle(noise, (6, 4, 2)):
        assert torch.equal(torch.randn(shape, generator=g), torch.randn(shape, generator=generator()))
        torch.rand((6, 4, 2), generator=g)
    assert noise.drawn == 0


def test_draw_per_particle_of_one_is_the_plain_call_and_leaves_nothing_behind():
    g = generator()
    with DrawPerParticle(ParticleNoise(1, g), (2, 3)):
        drawn = torch.randn((2, 3), generator=g)
    plain = generator()
    assert torch.equal(drawn, torch.randn((2, 3), generator=plain))
    assert torch.equal(torch.randn((2, 3), generator=g), torch.randn((2, 3), generator=plain))
