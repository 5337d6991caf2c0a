"""Noise that belongs to the particle: no particle's noise depends on how many others there are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def key(generator: torch.Generator | None, particle: int) -> int:
    """A 63-bit seed from the *state* of a generator (None: torch's global one) and a particle's number.

    Reading the state consumes nothing. Keying by state and not by `initial_seed()` gives a second call with the same
    generator new particles, as it gives new noise to a plain call.
    """
    state = torch.get_rng_state() if generator is None else generator.get_state()
    digest = hashlib.sha256(state.cpu().numpy().tobytes() + particle.to_bytes(8, "little")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class ParticleNoise:
    """Noise for n particles of P prompts: particle 0 is the plain call, particle k a plain call with its own generator.

    Particle 0 of all P prompts is drawn in one block, just as a call without particles would draw it. Particle k >= 1
    draws the same block from a generator keyed by (state of the user's generator at entry, k). So n = 1 is the plain
    call bit for bit, and adding particles never changes the noise of the earlier ones.
    """

    def __init__(self, n: int, generator: torch.Generator | None = None):
        if n < 1:
            raise ValueError(f"n = {n}: a run needs at least one particle a prompt; pass n >= 1.")
        self.n, self.generator = n, generator
        self.seeds = [key(generator, k) for k in range(n)]  # seed 0 serves the picks: particle 0 has the user's own
        self.drawn = 0
        self._generators: dict[torch.device, list[torch.Generator]] = {}

    def draw(self, plain: Callable[[], Tensor], alias: Tensor | None = None) -> Tensor:
        """(P n, ...) noise, particle-first. `plain()` draws the block (P, ...) of particle 0."""
        first = plain()
        blocks = [first] + [
            torch.randn(first.shape, generator=g, device=g.device, dtype=first.dtype).to(first.device)
            for g in self._on(first.device)
        ]
        self.drawn += 1
        noise = torch.stack(blocks, dim=1).flatten(0, 1)
        return noise if alias is None else noise[alias.to(noise.device)]

    def pick_generator(self, i: int) -> torch.Generator:
        """The generator for the random choices of a run's look number i: a stream apart from all particle noise."""
        return torch.Generator().manual_seed((self.seeds[0] + i) % 2**63)

    def _on(self, device: torch.device) -> list[torch.Generator]:
        if device not in self._generators:
            self._generators[device] = [torch.Generator(device).manual_seed(seed) for seed in self.seeds[1:]]
        return self._generators[device]


class DrawPerParticle(TorchFunctionMode):
    """While active, `torch.randn` of exactly `shape` = (P n, ...) answers with per-particle noise.

    The generator stays the one that the library passes: particle 0 calls the very `torch.randn` it would have called,
    for P rows. The whole shape must match; a draw of any other shape goes through untouched (Brownian trees, per-row
    generator lists).
    """

    def __init__(self, noise: ParticleNoise, shape: tuple[int, ...], alias: Tensor | None = None):
        super().__init__()
        self.noise, self.shape, self.alias = noise, tuple(shape), alias

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        size = args[0] if args else kwargs.get("size")
        if func is not torch.randn or size is None or isinstance(size, int) or tuple(size) != self.shape:
            return func(*args, **kwargs)
        if isinstance(kwargs.get("generator"), list):
            return func(*args, **kwargs)
        rest = {name: value for name, value in kwargs.items() if name != "size"}
        plain = (self.shape[0] // self.noise.n, *self.shape[1:])
        return self.noise.draw(lambda: func(plain, *args[1:], **rest), self.alias)
