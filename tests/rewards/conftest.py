import pytest
import small_models
import torch

from steer import zoo
from steer.zoo.data import compose, glyphs
from steer.zoo.style import StyleNet


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A random open_clip model, saved."""
    return small_models.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def classifier():
    return small_models.classifier()


@pytest.fixture(scope="session")
def zero_shot():
    return small_models.zero_shot()


@pytest.fixture
def style_net(monkeypatch):
    """A random emoji-style network in place of the trained one."""
    from steer.rewards import style

    torch.manual_seed(0)
    net = StyleNet((8, 8, 16, 16)).eval().requires_grad_(False)
    monkeypatch.setattr(zoo, "style_net", lambda: net)
    style._grams_of.cache_clear()  # it may hold the features of another network
    return net


@pytest.fixture(scope="session")
def pictures():
    """Six real emoji on white, (6, 3, 64, 64) in [0, 1]."""
    return compose(glyphs()[0][0, 10:16])
