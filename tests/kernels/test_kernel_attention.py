"""The attention ops on a machine without a GPU: laws of the formulas, errors, ranges, counts by hand."""

import pytest
import torch
from attention_cases import Draw
from steer_kernels import shared_attention as shared
from steer_kernels import swap_attention as swap
from steer_kernels import token_maps as looked
from steer_kernels.shared_attention import shared_attention
from steer_kernels.swap_attention import swap_attention
from steer_kernels.token_maps import token_maps
from torch.nn.functional import scaled_dot_product_attention as attend
from torch.testing import assert_close

DRAW = Draw(torch.float32)
QUERY, KEY, VALUE = (DRAW(2, 3, 2, 7, 5) for _ in range(3))
STYLES = [DRAW(2, 2, 2, 4, 5) for _ in range(2)]
PICKED = torch.tensor([0, 1, 1, 0, 1, 0, 0]).float().expand(2, 3, 7)


def each(styles, k):
    """Style k for every row of a group."""
    return (part[:, k, None].expand(-1, 3, -1, -1, -1) for part in styles)


def test_a_swap_reads_one_style_after_the_other():
    one = [attend(QUERY, *each(STYLES, k)) for k in range(2)]
    assert_close(swap_attention(QUERY, KEY, VALUE, *STYLES, [0.25, 0.75]), 0.25 * one[0] + 0.75 * one[1])
    blended = attend(1.5 * torch.lerp(QUERY, QUERY.flip(0), 0.3), *each(STYLES, 0))
    found = swap_attention(
        QUERY, KEY, VALUE, *(part[:, :1] for part in STYLES), [1.0], content=QUERY.flip(0), gamma=0.3, tau=1.5
    )
    assert_close(found, blended)


def test_strength_chooses_between_reading_and_plain_attention():
    plain = attend(QUERY, KEY, VALUE)
    for read in (
        lambda strength: swap_attention(QUERY, KEY, VALUE, *STYLES, [0.5, 0.5], strength),
        lambda strength: shared_attention(QUERY, KEY, VALUE, *STYLES, strength),
    ):
        assert_close(read(torch.zeros(2, 3, 7)), plain)
        whole, picked = read(None), PICKED[..., None, :, None]
        assert_close(read(PICKED), torch.where(picked == 1, whole, plain))
        assert_close(read(PICKED / 2), torch.lerp(plain, whole, picked / 2))


def test_sharing_is_attention_to_keys_beside_each_other():
    keys, values = (
        torch.cat([own, *each([others], 0), *each([others], 1)], -2)
        for own, others in ((KEY, STYLES[0]), (VALUE, STYLES[1]))
    )
    assert_close(shared_attention(QUERY, KEY, VALUE, *STYLES), attend(QUERY, keys, values))
    a_and_b = [DRAW.pairs(2, 3, 2, 5) for _ in range(2)]
    query, key = (a * x + b for x, (a, b) in ((QUERY, a_and_b[0].split(1, -2)), (keys, a_and_b[1].split(1, -2))))
    key = torch.cat([keys[..., :2, :], key[..., 2:7, :], keys[..., 7:, :]], -2)
    found = shared_attention(
        QUERY, KEY, VALUE, *STYLES, own=(2, 7), raw=(0, 2), query_affine=a_and_b[0], key_affine=a_and_b[1]
    )
    assert_close(found, attend(query, key, values))


def test_maps_are_columns_of_the_probabilities():
    query, key, value = QUERY[0], KEY[0], VALUE[0]
    found = token_maps(query, key, value, [4, 0])
    assert_close(found.output, attend(query, key, value))
    shares = attend(query, key, torch.eye(7).expand(3, 2, 7, 7))
    assert_close(found.maps, shares.mean(1)[..., [4, 0]])
    assert_close(token_maps(query, key, value, range(7)).maps.sum(-1), torch.ones(3, 7))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: swap_attention(QUERY, KEY, VALUE[..., :6, :], *STYLES, [1, 1]), r"value is \(2, 3, 2, 6, 5\)"),
        (lambda: swap_attention(QUERY, KEY, VALUE, *STYLES, [1]), "1 weights for 2 styles"),
        (lambda: swap_attention(QUERY, KEY, VALUE, *STYLES, [1, 1], tau=0.0), "expected tau > 0"),
        (lambda: swap_attention(QUERY, KEY, VALUE, *STYLES, [1, 1], own=(3, 8)), "<= 7 keys"),
        (lambda: swap_attention(QUERY, KEY, VALUE, *STYLES, [1, 1], PICKED[0]), r"strength is \(3, 7\)"),
        (lambda: shared_attention(QUERY, KEY, VALUE, *(part[:1] for part in STYLES)), "other_key is"),
        (lambda: shared_attention(QUERY, KEY, VALUE, *STYLES, scale=-1.0), "expected scale > 0"),
        (lambda: shared_attention(QUERY, KEY, VALUE, *STYLES, raw=(4, 3)), "start <= stop"),
        (lambda: shared_attention(QUERY, KEY.half(), VALUE, *STYLES), "expected one of float16"),
        (lambda: shared_attention(QUERY, KEY, VALUE.to("meta"), *STYLES), "one device"),
        (lambda: token_maps(QUERY[0], KEY[0], VALUE[0], [1, 1]), "expected different ones of 7 keys"),
        (lambda: token_maps(QUERY[0], KEY[0], VALUE[0], [7]), "expected different ones of 7 keys"),
        (lambda: token_maps(QUERY[0], KEY[0], VALUE[0], []), "expected different ones of 7 keys"),
        (lambda: token_maps(QUERY[0, :, :0], KEY[0], VALUE[0], [1]), "query is"),
        (lambda: token_maps(QUERY[0].double(), KEY[0].double(), VALUE[0].double(), [1]), "float64"),
    ],
)
def test_bad_inputs_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ranges_end_where_they_should():
    for op in (swap.OP, shared.OP, looked.OP):
        assert op.fits(torch.zeros(1, 1, 1, 1, 256))
        assert not op.fits(torch.zeros(1, 1, 1, 1, 257))
        assert not op.fits(torch.zeros(1, 1, 1, 1, 8).double())
        assert not op.fits(torch.zeros(1, 1, 1, 1).expand(1, 65536, 1, 1, 1))


def test_counts_by_hand():
    """6 rows of 2 heads of 7 tokens of 5 channels of 4 bytes; 2 styles of 4 tokens for each of 2 groups."""
    rows, styles = 6 * 2 * 7 * 5, 2 * 2 * 2 * 4 * 5
    args = (QUERY, KEY, VALUE, *STYLES)
    share = 4  # of all: one number
    inputs = (*(part[:, :1] for part in args[3:]), [1.0], None, None, 0.0, 1.0, [0, 0], 1.0, None, None)
    assert swap.bytes_moved(*args[:3], *inputs) == 4 * (2 * rows + styles) + share
    assert swap.flops(*args[:3], *inputs) == 4 * rows * 4
    inputs = ([0.5, 0.5], PICKED, None, 0.0, 1.0, [0, 2], 1.0, None, None)
    own, parts, shares = 2 * rows // 7 * 2, 3 * rows, 7
    reading = rows + own + 2 * styles + shares + 2 * rows
    plain = 3 * rows + 2 * 3 * 7 + rows
    mixing = parts + shares + 2
    assert swap.bytes_moved(*args, *inputs) == 4 * (reading + plain + mixing + rows)
    assert swap.flops(*args, *inputs) == 4 * rows * (2 * (2 + 4) + 7)
    inputs = (None, [0, 7], [0, 0], 1.0, None, None)
    assert shared.bytes_moved(*args, *inputs) == 4 * (4 * rows + 2 * styles) + share
    assert shared.flops(*args, *inputs) == 4 * rows * (7 + 2 * 4)
    query = QUERY[0]  # half of the rows; peaks and totals are written and read
    columns, state = 3 * 2 * 2 * 5, 4 * 3 * 2 * 7
    expected = 3 * rows // 2 + 2 * rows // 2 + columns + 3 * 7 * 2 + state
    assert looked.bytes_moved(query, KEY[0], VALUE[0], [4, 0], 1.0) == 4 * expected
    assert looked.flops(query, KEY[0], VALUE[0], [4, 0], 1.0) == 2 * rows // 2 * (2 * 7 + 2)
