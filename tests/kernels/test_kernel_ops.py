"""score_select on a machine without a GPU: laws of the formula, errors; and of all ops what they move and return."""

import pytest
import torch
from all_cases import CASES
from steer_kernels.score_select import Selected, bytes_moved, score_select
from steer_kernels.traffic import torch_cost
from torch.nn.functional import cosine_similarity
from torch.utils._pytree import tree_leaves


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_scores_are_cosines_and_the_winner_is_gathered():
    image, text, latents = draw(3, 5, 7), draw(3, 7, seed=1), draw(3, 5, 4, 2)
    found = score_select(image, text, latents)
    torch.testing.assert_close(found.scores, cosine_similarity(image, text[:, None], dim=-1))
    for p in range(3):
        best = max(range(5), key=lambda n: found.scores[p, n])
        assert found.winner[p] == best
        assert torch.equal(found.latents[p], latents[p, best])


def test_nan_loses_ties_go_low_and_all_nan_is_the_first():
    text = torch.tensor([[1.0, 0.0]] * 3)
    image = torch.tensor([[[torch.nan, 1], [0, 1], [1, 1]], [[1, 1], [2, 0], [1, 0]], [[torch.nan, 0]] * 3])
    found = score_select(image, text, torch.arange(9.0).view(3, 3))
    half = 0.5**0.5
    expected = torch.tensor([[-torch.inf, 0, half], [half, 1, 1], [-torch.inf] * 3])
    torch.testing.assert_close(found.scores, expected)
    assert found.winner.tolist() == [2, 1, 0]
    assert found.latents.tolist() == [2, 4, 6]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype):
    # the sum of squares, 409600, overflows float16, and bfloat16 cannot tell 4095 from 4096
    image = torch.ones(1, 2, 4096, dtype=dtype) * 10
    image[0, 1, 0] = 0
    found = score_select(image, torch.ones(1, 4096, dtype=dtype), torch.zeros(1, 2))
    torch.testing.assert_close(found.scores, torch.tensor([[1.0, (4095 / 4096) ** 0.5]]))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 4), (2, 5), (2, 3, 1)), r"image \(2, 3, 4\), text \(2, 5\)"),
        (((2, 3, 4), (2, 4), (2, 2, 1)), r"latents \(P, N, ...\)"),
        (((2, 3), (2, 3), (2, 3)), r"expected image \(P, N, D\)"),
        (((2, 0, 4), (2, 4), (2, 0, 1)), "at least one"),
        (((2, 3, 4), (2, 4), (2, 3, 0)), "at least one"),
    ],
)
def test_wrong_shapes_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        score_select(*map(torch.zeros, shapes))


def test_wrong_dtypes_and_devices_are_named():
    image, text, latents = torch.zeros(1, 2, 3), torch.zeros(1, 3), torch.zeros(1, 2, 1)
    with pytest.raises(ValueError, match=r"float32 and text .*float16"):
        score_select(image, text.half(), latents)
    with pytest.raises(ValueError, match="float64"):
        score_select(image.double(), text.double(), latents)
    with pytest.raises(ValueError, match="one device"):
        score_select(image, text, latents.to("meta"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fewer_bytes_than_the_torch_composition(case):
    for dtype in case.dtypes:
        for inputs in case.typical(dtype).values():
            assert case.op.bytes_moved(*inputs) < torch_cost(case.op.reference, *inputs).bytes


def test_bytes_by_hand():
    one, two = torch.empty(3, 4, device="meta"), torch.empty(3, 1, device="meta").expand(3, 4)
    assert torch_cost(lambda a, b: (a + b).transpose(0, 1), one, two) == (48 + 12 + 48, 12)
    assert torch_cost(lambda a, b: a @ b.mT.contiguous(), one, two) == (12 + 48 + 48 + 48 + 36, 2 * 3 * 4 * 3)
    # P = 2, N = 9 (two blocks of 8 rows), D = 4, slab = 6, float16 embeddings, float32 latents
    image, text, latents = torch.empty(2, 9, 4).half(), torch.empty(2, 4).half(), torch.empty(2, 9, 2, 3)
    embeddings, scores, slabs = (2 * 9 * 4 + 2 * 4 * 2) * 2, 2 * 9 * 4 * 2, 2 * (8 + 2 * 6 * 4)
    assert bytes_moved(image, text, latents) == embeddings + scores + slabs


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_planned_outputs_are_laid_out_as_those_of_the_reference(case):
    for inputs in case.typical(case.dtypes[0]).values():
        planned, expected = (tree_leaves(given) for given in (case.op.plan(*inputs)[0], case.op.reference(*inputs)))
        assert [(t.shape, t.dtype, t.stride()) for t in planned] == [(t.shape, t.dtype, t.stride()) for t in expected]


def test_selected_is_a_tuple_of_three():
    scores, winner, latents = score_select(torch.ones(1, 1, 2), torch.ones(1, 2), torch.ones(1, 1))
    assert isinstance(score_select(torch.ones(1, 1, 2), torch.ones(1, 2), torch.ones(1, 1)), Selected)
    assert (scores.item(), winner.item(), latents.item()) == (pytest.approx(1), 0, 1)
