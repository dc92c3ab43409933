import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from fastloop.accel.kernels.shared_prefix import fast, reference, triton_kernels

# N, H, Hkv, Q, P, S, D
SIZES = [
    (1, 1, 1, 1, 1, 1, 8),
    (3, 4, 2, 5, 37, 9, 24),
    (4, 8, 2, 8, 300, 33, 32),
    (2, 6, 1, 17, 130, 1, 20),
    (5, 3, 3, 1, 65, 70, 16),
]
SHOWN = ["all", "shared", "own"]


def arguments(sizes, dtype, *, shown="all", blind=True, seed=0, guarded=lambda x: x):
    """Random ones; with `blind` the first branch's first query sees no suffix."""
    N, H, heads, Q, P, S, D = sizes
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return guarded(torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype))

    mask = torch.rand(N, Q, S, generator=random) < 0.6
    mask[0, 0] &= not blind
    visible = torch.rand(1 if shown == "shared" else N, P, generator=random) < 0.6
    return (
        draw(N, H, Q, D), draw(1, heads, P, D), draw(1, heads, P, D), draw(N, heads, S, D),
        draw(N, heads, S, D), mask, D**-0.5, None if shown == "all" else visible,
    )  # fmt: skip


def torch_says(q, k_prefix, v_prefix, k_suffix, v_suffix, mask, scale, visible):
    """torch's own attention over expanded keys."""
    N, _, Q, _ = q.shape
    P = k_prefix.shape[2]
    visible = torch.ones(1, P, dtype=torch.bool) if visible is None else visible
    seen = torch.cat([visible[:, None].expand(N, Q, P), mask.expand(N, -1, -1)], 2)
    keys, values = (
        torch.cat([one.expand(N, -1, -1, -1), own], 2)
        for one, own in ((k_prefix, k_suffix), (v_prefix, v_suffix))
    )
    return scaled_dot_product_attention(
        q, keys, values, attn_mask=seen[:, None], scale=scale, enable_gqa=True
    )


@pytest.mark.parametrize("form", [reference, fast])
@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("sizes", SIZES)
def test_plain_forms_equal_torchs_attention_over_copies_of_the_prefix(form, shown, sizes):
    args = arguments(sizes, torch.float64, shown=shown)
    result = form.shared_prefix_attention(*args)
    torch.testing.assert_close(result, torch_says(*args), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("sizes", SIZES)
def test_fast_form_in_narrow_numbers(sizes, shown, dtype, tolerance):
    args = arguments(sizes, dtype, shown=shown)
    exact = reference.shared_prefix_attention(*(wide(a) for a in args))
    result = fast.shared_prefix_attention(*args)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("sizes", SIZES)
def test_fast_form_rounds_what_tells_keys_apart_and_not_what_they_share(sizes, shown):
    q, k_prefix, v_prefix, k_suffix, *rest = arguments(sizes, torch.bfloat16, shown=shown)
    bias = 64 * torch.randn(k_prefix[:, :, :1].shape, generator=torch.Generator().manual_seed(1))
    k_prefix, k_suffix = ((keys + bias).to(torch.bfloat16) for keys in (k_prefix, k_suffix))
    args = (q, k_prefix, v_prefix, k_suffix, *rest)
    exact = reference.shared_prefix_attention(*(wide(a) for a in args))
    result = fast.shared_prefix_attention(*args).double()
    torch.testing.assert_close(result, exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_nobody_sees_changes_no_bit(dtype):
    args = arguments(SIZES[2], dtype, shown="shared")
    expected = fast.shared_prefix_attention(*args)
    hidden = ~args[-1].any(0)
    k_prefix = args[1].clone()
    k_prefix[:, :, hidden] = 1e4
    result = fast.shared_prefix_attention(args[0], k_prefix, *args[2:])
    assert torch.equal(result, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("sizes", SIZES)
def test_kernel_parity(device, draw, assert_parity, sizes, shown, dtype):
    args = on(device, draw(dtype), arguments(sizes, dtype, shown=shown))
    assert_parity(triton_kernels.shared_prefix_attention, reference.shared_prefix_attention, *args)


def wide(value):
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def on(device, draw, args):
    """Numbers between NaN, masks between True, so that reading past either shows."""

    def moved(value):
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_floating_point():
            return draw.guarded(value)
        around = torch.ones(value.numel() + 128, dtype=torch.bool)
        around[64:-64] = value.flatten()
        return around.to(device)[64:-64].view(value.shape)

    return tuple(moved(value) for value in args)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("N", [1, 4, 8])
@pytest.mark.parametrize("Q", [1, 8, 32])
def test_kernel_parity_at_the_sizes_of_models(device, draw, assert_parity, N, Q, dtype):
    args = on(device, draw(dtype), arguments((N, 16, 2, Q, 1200, 400, 128), dtype, shown="own"))
    assert_parity(triton_kernels.shared_prefix_attention, reference.shared_prefix_attention, *args)


@settings(max_examples=60, deadline=None)
@given(
    N=st.integers(1, 5), heads=st.integers(1, 3), group=st.integers(1, 3), Q=st.integers(1, 9),
    P=st.integers(0, 40), S=st.integers(0, 12), D=st.sampled_from([1, 8, 20]),
    shown=st.sampled_from(SHOWN), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(N, heads, group, Q, P, S, D, shown, seed):
    args = arguments((N, heads * group, heads, Q, P, S, D), torch.float64, shown=shown, seed=seed)
    expected = reference.shared_prefix_attention(*args)
    assert expected.isfinite().all()
    result = fast.shared_prefix_attention(*args)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=["reference", "fast", "triton_kernels"])
def form(request):
    """Each form as a function of tensors on the CPU, which takes `form.dtype`."""
    module = globals()[request.param]
    device = request.getfixturevalue("device") if module is triton_kernels else "cpu"

    def run(*args):
        args = (a.to(device) if isinstance(a, torch.Tensor) else a for a in args)
        return module.shared_prefix_attention(*args).cpu()

    run.dtype = torch.float32 if module is triton_kernels else torch.float64
    return run


def test_a_query_that_sees_nothing_gets_zeros_and_its_neighbors_do_not(form):
    args = [*arguments(SIZES[1], form.dtype, shown="own")]
    args[5][1], args[7][1] = False, False
    args[5][2] = True
    result = form(*args)
    assert (result[1] == 0).all()
    assert (result[2] != 0).all()


def test_without_a_suffix_or_without_a_prefix(form):
    for P, S in ((40, 0), (0, 7)):
        args = arguments((2, 4, 2, 3, P, S, 16), form.dtype, blind=False)
        args[5][..., :1] = True
        result = form(*args).double()
        expected = torch_says(*(wide(a) for a in args))
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_large_scores_neither_overflow_nor_lose_the_smaller_part(form):
    q, k_prefix, *rest = arguments(SIZES[1], form.dtype)
    for scales in ((300.0, 1.0), (1.0, 300.0)):
        args = (q, k_prefix * scales[0], rest[0], rest[1] * scales[1], *rest[2:])
        result = form(*args).double()
        expected = torch_says(*(wide(a) for a in args))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_branches_do_not_see_each_other(form):
    args = arguments(SIZES[1], form.dtype)
    before = form(*args)
    args[3][1] = args[4][1] = args[0][1] = torch.nan
    after = form(*args)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert after[1].isnan().any()


@pytest.mark.parametrize("shown", SHOWN)
def test_scores_that_are_no_numbers_are_not_taken_for_hidden_ones(shown):
    args = arguments(SIZES[1], torch.float64, shown=shown)
    args[0][1] = torch.nan
    result = fast.shared_prefix_attention(*args)
    assert torch.equal(result.isnan(), args[0].isnan())


def test_views_of_longer_buffers_and_one_mask_for_all(form):
    q, k_prefix, v_prefix, k_suffix, v_suffix, mask, scale, _ = arguments(SIZES[1], form.dtype)
    room = [
        torch.cat([x, torch.full_like(x, torch.nan)], 2)
        for x in (k_prefix, v_prefix, k_suffix, v_suffix)
    ]
    views = [
        x[:, :, : y.shape[2]]
        for x, y in zip(room, (k_prefix, v_prefix, k_suffix, v_suffix), strict=True)
    ]
    strided = q.transpose(1, 2).contiguous().transpose(1, 2)
    wider = torch.ones(1, mask.shape[1], 2 * mask.shape[2], dtype=torch.bool)
    wider[..., ::2] = mask[:1]
    result = form(strided, *views, wider[..., ::2], scale)
    same = mask[:1].expand_as(mask).clone()
    expected = torch_says(
        *(wide(a) for a in (q, k_prefix, v_prefix, k_suffix, v_suffix, same, scale, None))
    )
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_same_arguments_give_the_same_bits(device, draw):
    args = on(device, draw(torch.float32), arguments(SIZES[2], torch.float32))
    first, again = (triton_kernels.shared_prefix_attention(*args) for _ in range(2))
    assert torch.equal(first, again)


def test_what_a_form_does_not_compute_is_refused():
    args = arguments((1, 2, 1, 1, 3, 2, 129), torch.float32)
    with pytest.raises(ValueError, match="up to 128 wide, got 129"):
        triton_kernels.shared_prefix_attention(*args)
    q, *rest = arguments(SIZES[0], torch.float32)
    with pytest.raises(ValueError, match="bfloat16"):
        triton_kernels.shared_prefix_attention(q.bfloat16(), *rest)
    with pytest.raises(ValueError, match="dense"):
        triton_kernels.shared_prefix_attention(
            *arguments((1, 1, 1, 1, 2, 2, 8), torch.float32)[:3],
            torch.zeros(1, 1, 8, 2).transpose(2, 3), *rest[3:],
        )  # fmt: skip
    with pytest.raises(ValueError, match="for a CPU, got tensors on meta"):
        fast.shared_prefix_attention(q.to("meta"), *rest)
