import pytest
import torch

from fastloop.policies.cacheflow.flow import FLOWS


def build(kind, dims=8, dtype=torch.float64):
    torch.manual_seed(0)
    flow = FLOWS[kind](dims, layers=3, width=24)
    for parameter in flow.parameters():  # far from the identity
        torch.nn.init.normal_(parameter, std=0.3)
    return flow.to(dtype)


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back(kind, dtype):
    flow, y = build(kind, dtype=dtype), torch.randn(30, 8, dtype=dtype)
    with torch.inference_mode():
        z, log_det = flow.inverse(y)
        back, same = flow(z)
    assert (back - y).abs().max() < 1e-4
    assert (same - log_det).abs().max() < 1e-4
    assert (z - y).abs().max() > 0.1


@pytest.mark.parametrize("kind", FLOWS)
def test_log_determinant_is_that_of_the_jacobian(kind):
    flow, z = build(kind), torch.randn(5, 8, dtype=torch.float64)
    y, log_det = flow(z)
    for row in range(len(z)):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow(x)[0], z[row])
        assert abs(torch.linalg.slogdet(jacobian).logabsdet - log_det[row]) < 1e-4
    inverse = torch.autograd.functional.jacobian(lambda x: flow.inverse(x)[0], y[0].detach())
    assert abs(torch.linalg.slogdet(inverse).logabsdet + flow.inverse(y[:1])[1]) < 1e-4


@pytest.mark.parametrize("kind", FLOWS)
def test_any_leading_shape(kind):
    flow, z = build(kind), torch.randn(2, 3, 8, dtype=torch.float64)
    y, log_det = flow(z)
    flat, rest = flow(z.flatten(0, 1))
    torch.testing.assert_close(y.flatten(0, 1), flat)
    torch.testing.assert_close(log_det.flatten(), rest)


@pytest.mark.parametrize("kind", FLOWS)
def test_a_loss_that_falls_makes_data_of_noise(kind):
    torch.manual_seed(0)
    flow = FLOWS[kind](2, layers=3, width=24)
    random = torch.Generator().manual_seed(0)
    y = torch.tensor([3.0, -1.0]) + torch.tensor([0.3, 0.8]) * torch.randn(512, 2, generator=random)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        flow.loss(y, random).backward()
        optimizer.step()
    with torch.no_grad():
        made = flow(torch.randn(2000, 2, generator=random))[0]
    torch.testing.assert_close(made.mean(0), torch.tensor([3.0, -1.0]), atol=0.2, rtol=0)
    torch.testing.assert_close(made.std(0), torch.tensor([0.3, 0.8]), atol=0.2, rtol=0)


@pytest.mark.parametrize("kind", FLOWS)
def test_the_base_is_learned_through(kind):
    flow, y = build(kind), torch.randn(6, 8, dtype=torch.float64)
    torch.testing.assert_close(flow.base(y), flow.inverse(y)[0], atol=1e-3, rtol=0)
    flow.base(y).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
