"""Attention for training: as torch has it, where heads share keys, too; nothing stays behind."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fastloop.policies.vla.attention import HIDDEN, biased_attention, trains_fast


def inputs(dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 5, 8, generator=random, dtype=dtype, requires_grad=True)
        for heads in (4, 2, 2)
    )
    mask = torch.rand(2, 5, 5, generator=random) < 0.5
    return query, key, value, mask | torch.eye(5, dtype=torch.bool)


def reference(query, key, value, mask):
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask[:, None], scale=0.3, enable_gqa=True
    ).transpose(1, 2)


def ours(query, key, value, mask, **options):
    bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, HIDDEN)[:, None]
    return biased_attention(None, query, key, value, bias, scaling=0.3, **options)[0]


def test_it_is_torchs_attention_forward_and_backward():
    *tensors, mask = inputs()
    expected, found = reference(*tensors, mask), ours(*tensors, mask)
    assert found.shape == (2, 5, 4, 8)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), tensors)
    got = torch.autograd.grad((found * weights).sum(), tensors)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_in_parts_it_is_the_same():
    *tensors, mask = inputs()
    parts = ((slice(0, 3), (slice(0, 1), slice(2, None))), (slice(3, None), (slice(0, 4),)))
    mask[:, :3, 1] = mask[:, 3:, 4] = False
    mask[:, 4, 3] = True
    torch.testing.assert_close(
        ours(*tensors, mask, parts=parts), reference(*tensors, mask), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_a_decoder_has_it_for_as_long_as_the_block_lasts(tiny_network, autocast):
    decoder = tiny_network(torch.float32).get_decoder()
    random = torch.Generator().manual_seed(1)
    embeds = torch.randn(2, 6, 32, generator=random)
    mask = torch.ones(2, 6, 6, dtype=torch.bool).tril()
    mask[0, 5, 1:4] = False

    def run(attention_mask):
        positions = torch.arange(6).expand(3, 2, -1)
        return decoder(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=positions,
            use_cache=False,
        ).last_hidden_state  # fmt: skip

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = run(mask[:, None])
        with trains_fast(decoder, mask) as given:
            assert given.dtype == (torch.bfloat16 if autocast else torch.float32)
            found = run(given)
    tolerance = 0.1 if autocast else 1e-4
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    with pytest.raises(KeyError), trains_fast(decoder, mask):
        raise KeyError
    assert decoder.config._attn_implementation == "sdpa"
