"""All methods that follow the gradient of a reward: guidance at every step, here; twisted; of the initial noise."""

from __future__ import annotations

from steer.diffusion.controllers.gradients.noise import NoiseOptimisation, dno, initno, reno
from steer.diffusion.controllers.gradients.rules import Kick, Relative, Residual, Score, Step, Unit
from steer.diffusion.controllers.gradients.step import Gradient
from steer.diffusion.controllers.gradients.twisted import Twisted, twisted
from steer.diffusion.controllers.gradients.value import Reward, Smoothing

__all__ = [
    "Gradient",
    "NoiseOptimisation",
    "Smoothing",
    "Twisted",
    "dno",
    "dps",
    "freedom",
    "initno",
    "lgd",
    "mpgd",
    "reno",
    "tfg",
    "twisted",
    "universal_guidance",
]


def tfg(
    reward: Reward,
    rho: float = 1.0,
    mu: float = 1.0,
    inner: int = 4,
    repeats: int = 1,
    samples: int = 4,
    gamma: float = 0.1,
) -> Gradient:
    """Training-free guidance, all of it (arXiv 2409.15761): rho and mu with the increasing schedules, inner, repeats.

    rho, mu of the order of 0.25 to 2 in the paper, for log f a log-probability; gamma 0.001 to 0.1.
    """
    smoothing = Smoothing(samples, gamma) if gamma > 0 else Smoothing()
    return Gradient(
        reward, Kick(rho, "increase"), Step(mu, "increase"), inner=inner, repeats=repeats, smoothing=smoothing
    )


def dps(reward: Reward, strength: float = 1.0) -> Gradient:
    """Diffusion posterior sampling (arXiv 2209.14687): x' moves by strength grad_x r / sqrt(-r), r = -|y - A(x0)|^2.

    strength 0.3 to 1 in the paper. Biased: the likelihood of x is taken at the one point x0(x). For a Gaussian prior
    and a linear A the tilt so is too strong while x is noisy; `twisted` corrects it by weights.
    """
    return Gradient(reward, Residual(strength))


def lgd(reward: Reward, strength: float = 1.0, samples: int = 10, gamma: float = 1.0) -> Gradient:
    """Loss-guided diffusion (LGD-MC, Song et al., ICML 2023): the score gains grad_x log mean_i exp(r(x0 + s d_i)).

    strength 1 aims at p(x) exp(r(x)); more samples, less bias.
    """
    return Gradient(reward, Score(strength), smoothing=Smoothing(samples, gamma))


def freedom(
    reward: Reward, strength: float = 0.02, repeats: int = 10, travel: tuple[float, float] = (0.2, 0.5)
) -> Gradient:
    """FreeDoM (arXiv 2303.09833): steps as large as `strength` times the noise estimate, time travel in the middle.

    Defaults of the released code for ImageNet with CLIP; `repeats=1` for faces. It travels only in the semantic stage.
    """
    return Gradient(reward, Relative(strength), repeats=repeats, travel=travel)


def mpgd(reward: Reward, strength: float, repeats: int = 1, travel: tuple[float, float] = (0.3, 0.6)) -> Gradient:
    """Manifold-preserving guided diffusion (arXiv 2311.16424), without projection: x0 moves, the noise estimate stays.

    No backward pass of the network. strength is the root mean square of the step times alpha'; the released code uses
    repeats = 5 in the stretch `travel`.
    """
    return Gradient(reward, direct=Unit(strength), repeats=repeats, travel=travel)


def universal_guidance(
    reward: Reward, forward: float, backward: float = 0.0, inner: int = 1, repeats: int = 1
) -> Gradient:
    """Universal guidance (arXiv 2302.07121): forward, backward and recurrence.

    forward   eps <- eps - forward sigma grad_x r(x0(x)): the score gains forward times the gradient
    backward  step size of `inner` gradient steps on x0 itself, the noise estimate following it
    repeats   k, self-recurrence at every step
    """
    return Gradient(reward, Score(forward), Step(backward), keep_noise=False, inner=inner, repeats=repeats)
