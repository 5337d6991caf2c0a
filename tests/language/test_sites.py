"""Sites of vision-language models are in their text half, whatever their vision half looks like."""

import pytest
import torch
from equivalence import forward, inputs, model
from tiny_vlms import VISION

from steer.language import Site, SteeringVector, activations, norms, recording, steering
from steer.language.tower import module_at, tower


@pytest.mark.parametrize("name", VISION)
def test_heads_make_the_attention(name):
    """What enters the output projection, projected, is what the attention gives."""
    network = model(name)
    with recording(network, ["1.heads", "1.attention"]) as found:
        forward(name, inputs(name))
    heads, attention = found[Site(1, "heads")][0], found[Site(1, "attention")][0]
    torch.testing.assert_close(module_at(network, "1.heads")(heads), attention)


@pytest.mark.parametrize("name", VISION)
def test_blocks_are_the_stream_of_text(name):
    """As many as the text half has, and a push behind the last is a push of what the head reads."""
    network, plain = model(name), forward(name, inputs(name))
    assert len(tower(network).blocks) == network.config.get_text_config().num_hidden_layers == 3
    push = SteeringVector({2: torch.ones(32)})
    with recording(network, [2]) as before:
        forward(name, inputs(name))
    settings = {"keep_norm": False, "relative": False, "where": "last"}
    with steering(network, push, 3.0, **settings), recording(network, [2]) as after:
        steered = forward(name, inputs(name))
    last, rest = after[Site(2)][0] - before[Site(2)][0], steered - plain
    torch.testing.assert_close(last[:, -1], torch.full((2, 32), 3.0), atol=1e-5, rtol=0)
    assert not last[:, :-1].any()
    assert not rest[:, :-1].any()
    assert rest[:, -1].any()


@pytest.mark.parametrize("name", VISION)
def test_rows_are_run_with_their_pictures(name):
    """One row at a time as all at once, though some processors lay the patches of all pictures end to end."""
    together, apart = (activations(model(name), inputs(name), [1], rows=rows) for rows in (2, 1))
    torch.testing.assert_close(apart[Site(1)], together[Site(1)], atol=1e-5, rtol=1e-5)
    sizes = [norms(model(name), inputs(name), [1], rows=rows)[Site(1)] for rows in (2, 1)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)


def test_pictures_that_rows_do_not_share_are_refused():
    given = inputs("qwen2_5_vl")
    with pytest.raises(ValueError, match=r"\['pixel_values'\] cannot be cut into 2 rows: run all at once, with rows=2"):
        activations(model("qwen2_5_vl"), {**given, "pixel_values": given["pixel_values"][1:]}, [1], rows=1)
