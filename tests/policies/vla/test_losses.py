"""Chunked cross-entropy: equal to the plain one, gradients too, in less memory."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fastloop.policies.vla.losses import chunked_cross_entropy


def case(rows=23, width=7, vocab=50, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    head = nn.Linear(width, vocab, bias=bias).to(dtype)
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    return hidden, head, torch.randint(0, vocab, (rows,)), torch.rand(rows, dtype=dtype)


@pytest.mark.parametrize("chunk", [1, 5, 23, 256])
@pytest.mark.parametrize("weighted", [True, False])
def test_equal_to_the_plain_one_with_gradients(chunk, weighted):
    hidden, head, targets, weights = case()
    weights = weights if weighted else None
    plain = cross_entropy(head(hidden), targets, reduction="none")
    plain = (plain * (1 if weights is None else weights)).sum()
    parameters = [hidden, *head.parameters()]
    expected = torch.autograd.grad(plain, parameters)
    loss = chunked_cross_entropy(hidden, head, targets, weights, chunk=chunk)
    torch.testing.assert_close(loss, plain, rtol=1e-13, atol=0)
    for got, want in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_no_more_rows_of_logits_at_once_than_told():
    hidden, head, targets, _ = case()
    seen = []

    def watched(rows):
        seen.append(len(rows))
        return head(rows)

    chunked_cross_entropy(hidden, watched, targets, chunk=5).backward()
    assert sorted(seen) == sorted([5, 5, 5, 5, 3] * 2)  # once more for the backward pass


def test_logits_are_not_kept_for_the_backward_pass():
    hidden, head, targets, _ = case(rows=40, vocab=1000)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        chunked_cross_entropy(hidden, head, targets, chunk=10)
    assert max(kept, default=0) < 10 * 1000


def test_no_rows_are_no_loss_and_no_gradient():
    hidden, head, targets, _ = case(rows=0)
    loss = chunked_cross_entropy(hidden, head, targets)
    loss.backward()
    assert loss == 0
    assert hidden.grad.shape == (0, 7)


def test_half_precision_is_summed_in_single():
    hidden, head, targets, _ = case(dtype=torch.bfloat16)
    loss = chunked_cross_entropy(hidden, head, targets)
    assert loss.dtype == torch.float32
    exact = cross_entropy(head(hidden).float(), targets, reduction="sum")
    torch.testing.assert_close(loss, exact, rtol=1e-5, atol=0)
