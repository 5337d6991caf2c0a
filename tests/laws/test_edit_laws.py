"""Laws of what editing does without a network: patches swapped, prompts aligned."""

from itertools import product

import pytest
import tiny
import torch
from torch.nn.functional import cosine_similarity

from steer.diffusion.controllers.edit import aligned, patch_swap

TOKENS = tiny.tokenizer()  # a letter a token, between a start and an end


def swapped_by_loops(features, mask, size):
    """Patch by patch, candidate by candidate."""
    _, _, height, width = features.shape
    places = list(product(range(height - size + 1), range(width - size + 1)))
    touched = {(y, x): bool(mask[y : y + size, x : x + size].any()) for y, x in places}
    out = features.clone()
    for picture, result in zip(features, out):
        total, count = torch.zeros_like(picture), torch.zeros(height, width)
        for y, x in (place for place in places if touched[place]):
            own, best, most = picture[:, y : y + size, x : x + size], None, -2.0
            for v, u in (place for place in places if not touched[place]):
                other = picture[:, v : v + size, u : u + size]
                alike = float(cosine_similarity(own.flatten(), other.flatten(), 0))
                if alike > most:
                    best, most = other, alike
            total[:, y : y + size, x : x + size] += best
            count[y : y + size, x : x + size] += 1
        result[:, mask.bool()] = (total / count.clamp(min=1))[:, mask.bool()]
    return out


@pytest.mark.parametrize("size", [1, 2, 3])
def test_patches_are_swapped_as_by_two_loops(size):
    features = torch.randn(2, 3, 8, 9, generator=tiny.generator())
    mask = torch.zeros(8, 9)
    mask[3:5, 4:7] = mask[7, 0] = 1
    found = patch_swap(features, mask, size)
    torch.testing.assert_close(found, swapped_by_loops(features, mask, size))
    assert torch.equal(found[..., mask == 0], features[..., mask == 0])


def test_a_texture_is_continued_into_a_hole_that_was_filled_roughly():
    """Stripes, dimmed in the hole: the patches most like them are the stripes."""
    stripes = (torch.arange(12) % 3 == 0).float().expand(1, 1, 12, 12) + 0.1
    mask = torch.zeros(12, 12)
    mask[4:8, 4:8] = 1
    torch.testing.assert_close(patch_swap(torch.where(mask.bool(), 0.3 * stripes, stripes), mask), stripes)


def test_no_hole_is_no_change_and_bad_ones_are_refused():
    features = torch.randn(1, 2, 6, 6, generator=tiny.generator())
    assert torch.equal(patch_swap(features, torch.zeros(6, 6)), features)
    with pytest.raises(ValueError, match="lies outside of the hole"):
        patch_swap(features, torch.ones(6, 6))
    for mask, size in ((torch.zeros(5, 6), 3), (torch.zeros(6, 6), 7)):
        with pytest.raises(ValueError, match="a patch that fits"):
            patch_swap(features, mask, size)


def pairs(alignment, length):
    """{target token: its source tokens}, of the first `length`; those that keep their own maps left out."""
    columns = alignment.matrix.T[:length]
    return {t: row.nonzero()[:, 0].tolist() for t, row in enumerate(columns) if alignment.kept[t]}


@pytest.mark.parametrize(
    ("source", "target", "swap", "expected"),
    [
        ("a b", "a b", True, {0: [0], 1: [1], 2: [2], 3: [3]}),
        ("a b c", "a d c", True, {0: [0], 1: [1], 2: [2], 3: [3], 4: [4]}),  # a word in the place of another
        ("a b c", "a d c", False, {0: [0], 1: [1], 3: [3], 4: [4]}),
        ("a c", "a b c", True, {0: [0], 1: [1], 3: [2], 4: [3]}),  # a word more
        ("a b c", "a c", True, {0: [0], 1: [1], 2: [3], 3: [4]}),  # a word less
        ("a b e c", "a d c", True, {0: [0], 1: [1], 2: [2, 3], 3: [4], 4: [5]}),  # two words for one
    ],
)
def test_prompts_are_aligned_word_by_word(source, target, swap, expected):
    found = aligned(TOKENS, source, target, swap=swap)
    count = len(TOKENS(target)["input_ids"])
    assert pairs(found, count) == expected
    rest = pairs(found, 16)
    assert all(rest[t] == [min(15, t - count + len(TOKENS(source)["input_ids"]))] for t in range(count, 16))


def test_shares_are_kept_and_texts_follow_one_another():
    """One word for two reads what both are paid; two for one, each a half of it; equal prompts change no bit."""
    source, target = torch.rand(2, 5, 16, generator=tiny.generator())
    one = aligned(TOKENS, "a b e c", "a d c")
    torch.testing.assert_close(one(source, target)[..., 2], source[..., 2] + source[..., 3])
    two = aligned(TOKENS, "a d c", "a b e c")
    torch.testing.assert_close(two(source, target)[..., 2:4], source[..., 2:3].expand(-1, 2) / 2)
    assert one.changed == ((2, 3), (2,))
    assert torch.equal(aligned(TOKENS, "a b", "a b")(source, target), source)
    both = aligned(TOKENS, "a", "b", 4) + aligned(TOKENS, "a", "b", 5)
    assert both.matrix.shape == (9, 9)
    assert both.changed == ((1, 5), (1, 5))
    with pytest.raises(ValueError, match="5 and 3 tokens, where the network reads 4"):
        aligned(TOKENS, "a b c", "a", 4)
