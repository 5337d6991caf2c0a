"""Layers that peft has not: a block-diagonal matrix beside a linear layer, and a butterfly of rotations before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from steer.training.handle import Handle
from steer.training.method import Parametrise
from steer.training.weights.task import Learnable, targeted


class BlockDiagonal(nn.Module):
    """y = base(x) + x D with D = blockdiag(D_1 .. D_N), each ceil(in / blocks) x ceil(out / blocks), 0 at the start.

    DiaBlo, arXiv 2506.03230: from zero it starts well, since there is no product of two factors.
    As many blocks as it takes to cover both sides, N <= blocks; x is padded with zeros and y cut where they reach
    over. Entries that do are trained for nothing: they count, and merge as nothing.
    """

    def __init__(self, base: nn.Linear, blocks: int):
        super().__init__()
        sides = base.in_features, base.out_features
        if blocks < 1:
            raise ValueError(f"{blocks} blocks: expected at least 1.")
        into, out = (math.ceil(side / blocks) for side in sides)
        many = max(math.ceil(sides[0] / into), math.ceil(sides[1] / out))
        self.base, self.trained = base, nn.Parameter(base.weight.new_zeros(many, into, out))

    def forward(self, x: Tensor) -> Tensor:
        many, into, _ = self.trained.shape
        parts = rearrange(pad(x, (0, many * into - x.shape[-1])), "... (n i) -> ... n i", n=many)
        added = torch.einsum("...ni,nio->...no", parts, self.trained).flatten(-2)
        return self.base(x) + added[..., : self.base.out_features]

    def weight(self) -> Tensor:
        """That of one layer which does the same (out, in)."""
        return self.base.weight + torch.block_diag(*self.trained)[: self.base.in_features, : self.base.out_features].T


class Butterfly(nn.Module):
    """y = base(R^T x), R = F_{m-1} .. F_0 orthogonal, the identity at the start: the layer's weight is W0 R^T.

    Factor i turns `block` inputs at a time by Cayley's (I + Q) (I - Q)^-1, Q = -Q^T: in each chunk of 2^(i+1) half
    blocks the j-th together with the one 2^i further. One factor is OFT; 1 + log2(in / block) factors mix all inputs.
    BOFT, arXiv 2311.06243; peft's makes one factor only without its CUDA extension, and learns a scale as well.
    Raises ValueError for an odd block, and for inputs that are not a multiple of block x 2^(factors - 1).
    """

    def __init__(self, base: nn.Linear, block: int, factors: int):
        super().__init__()
        if block < 2 or block % 2 or factors < 1 or base.in_features % (block << (factors - 1)):
            raise ValueError(
                f"{factors} butterfly factors of blocks of {block} for {base.in_features} inputs: expected an even "
                "block, and inputs that are a multiple of block x 2^(factors - 1)."
            )
        angles = base.weight.new_zeros(factors, base.in_features // block, block * (block - 1) // 2)
        self.base, self.block, self.trained = base, block, nn.Parameter(angles)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(self.turned(x))

    def turned(self, x: Tensor) -> Tensor:
        """x R of rows x (..., in)."""
        turns = self._turns()
        for i in reversed(range(len(turns))):
            parts = rearrange(x, "... (c two j h) -> ... (c j) (two h)", two=2, j=2**i, h=self.block // 2)
            parts = torch.einsum("...nb,nbd->...nd", parts, turns[i])
            x = rearrange(parts, "... (c j) (two h) -> ... (c two j h)", two=2, j=2**i)
        return x

    def weight(self) -> Tensor:
        """That of one layer which does the same (out, in)."""
        return self.base.weight @ self.turned(torch.eye(self.base.in_features).to(self.base.weight)).T

    def _turns(self) -> Tensor:
        """Orthogonal blocks (factors, in / block, block, block)."""
        rows, columns = torch.triu_indices(self.block, self.block, 1)
        q = self.trained.new_zeros(*self.trained.shape[:2], self.block, self.block)
        q[..., rows, columns] = self.trained
        q = q - q.mT
        eye = torch.eye(self.block).to(q)
        return torch.linalg.solve(eye - q, eye + q)


def around(make: Callable[[nn.Linear], BlockDiagonal | Butterfly], targets: Sequence[str] = ()) -> Parametrise:
    """Each targeted layer inside of one of these: `around(partial(BlockDiagonal, blocks=64))`."""

    def parametrise(task: Learnable) -> Handle:
        made = {name: make(layer) for name, layer in targeted(task.model, targets).items()}
        for name, layer in made.items():
            task.model.set_submodule(name, layer)

        def detached() -> None:
            for name, layer in made.items():
                task.model.set_submodule(name, layer.base)

        @torch.no_grad()
        def merged() -> None:
            for layer in made.values():
                layer.base.weight.copy_(layer.weight())
            detached()

        return Handle(task.model, {f"{name}.trained": layer.trained for name, layer in made.items()}, merged, detached)

    return parametrise
