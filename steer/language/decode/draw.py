"""Random numbers that belong to the candidate: none of its tokens depends on how many others there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from steer.pick import Pick, Picked
from steer.plan import Planned, Seen

Random = Generator | Sequence[Generator] | None


class Draws:
    """Tokens for n candidates of P prompts, and ancestors for them.

    Candidate 0 of all prompts draws as a plain `generate` would, from the user's generator (None: torch's global one).
    Candidate k draws just so from a generator of its own, seeded by (state of the user's generator at the start, k). A
    sequence of generators, one a prompt, makes a prompt's texts independent of the other prompts. Raises ValueError
    for a sequence of another length.
    """

    def __init__(self, n: int, generator: Random, prompts: int, device: torch.device):
        self.n = n
        if generator is None or isinstance(generator, Generator):
            self.groups, owners = [slice(0, prompts)], [generator]
        else:
            self.groups, owners = [slice(p, p + 1) for p in range(prompts)], list(generator)
            if len(owners) != prompts:
                raise ValueError(f"{len(owners)} generators for {prompts} prompts: expected one, or one a prompt.")
        self.streams: list[list[Generator | None]] = []
        self.pickers: list[Generator] = []
        for owner in owners:
            first, other = _seeds(owner)
            place = device if owner is None else owner.device
            self.streams.append([owner, *(Generator(place).manual_seed(first + k) for k in range(1, n))])
            self.pickers.append(Generator().manual_seed(other))

    def tokens(self, scores: Tensor, rows: Tensor) -> Tensor:
        """(R,) drawn with probability softmax(scores (R, V)); row i is candidate `rows[i]` of 0 ... P n - 1."""
        chances = torch.zeros(self.groups[-1].stop * self.n, scores.shape[1], device=scores.device)
        chances[:, 0] = 1  # who has ended draws on, unheard: the others' numbers stay theirs
        chances[rows] = torch.softmax(scores, -1)
        chances = chances.unflatten(0, (-1, self.n))
        drawn = torch.empty(chances.shape[:2], dtype=torch.long, device=scores.device)
        for group, streams in zip(self.groups, self.streams):
            for k, generator in enumerate(streams):
                p = chances[group, k] if generator is None else chances[group, k].to(generator.device)
                drawn[group, k] = torch.multinomial(p, 1, generator=generator)[:, 0].to(drawn.device)
        return drawn.flatten()[rows]

    def picked(self, pick: Pick | Planned, logw: Tensor, seen: Seen) -> Picked:
        """Ancestors of every prompt's candidates."""
        parts = []
        for group, generator in zip(self.groups, self.pickers):
            part = Seen(seen.look, *(values[group] for values in seen[1:]))
            chosen = pick.at(part) if isinstance(pick, Planned) else pick
            parts.append(chosen(logw[group], generator))
        return Picked(torch.cat([p.index for p in parts]), torch.cat([p.logw for p in parts]))


def _seeds(owner: Generator | None) -> list[int]:
    """Two seeds from the state of a generator, which stays as it is."""
    owner = torch.default_generator if owner is None else owner
    twin = Generator(owner.device)
    twin.set_state(owner.get_state())
    return torch.randint(2**62, (2,), generator=twin, device=twin.device).tolist()
