import pytest
import torch

from fastloop.accel.kernels.parameters import LayerNorm, Linear
from fastloop.accel.kernels.reused_run import Ends, Solver, reference, triton_kernels
from fastloop.accel.samplers import SamplerConfig, build_sampler
from fastloop.policies.diffusion.transformer import TransformerForDiffusion

K = 10
KINDS = ["ddpm", "ddim", "dpm_solver", "flow"]
SIZES = [(1, 1, 2, 24), (3, 7, 7, 40), (1, 10, 10, 48), (1, 16, 2, 32), (3, 33, 2, 24)]


def solver_of(kind="ddpm", device="cpu", prediction_type="epsilon", steps=K):
    config = SamplerConfig(
        kind=kind,
        num_train_timesteps=10 * steps,
        num_inference_steps=steps,
        prediction_type=prediction_type,
    )
    return build_sampler(config).to(device, torch.float32)


class Run:
    """The arguments of one run, in float32 or lower and in float64."""

    def __init__(self, draw, size, kind="ddpm", order=0, dtype=torch.float32, steps=K):
        B, T, A, E = size
        low, full = draw(dtype), draw(torch.float32)
        self.sample, self.memory = low(B, T, A), low(B, T, A)
        sampler = solver_of(kind, self.sample.device, steps=steps)
        self.noises = low(sampler.num_noises, B, T, A)
        self.residuals = [low(B, T, E, scale=2.0, shift=1.0) for _ in range(order + 1)]
        self.tau = full(steps, scale=0.5) if order else None
        embedding = low.linear(E, A)
        self.ends = Ends(embedding, low(T, E), low.norm(E), low.linear(A, E))
        self.solver = Solver.of(sampler)

    def __call__(self, function, first, last, **changed):
        return function(**(vars(self) | changed), first=first, last=last)

    def expected(self, first, last):
        ends = self.ends
        wide = Ends(
            Linear(*(part.double() for part in ends.embedding)),
            ends.position.double(),
            LayerNorm(ends.norm.weight.double(), ends.norm.bias.double(), ends.norm.eps),
            Linear(*(part.double() for part in ends.head)),
        )
        return self(
            reference.reused_run,
            first,
            last,
            sample=self.sample.double(),
            memory=None if self.memory is None else self.memory.double(),
            noises=self.noises.double(),
            residuals=[residual.double() for residual in self.residuals],
            tau=None if self.tau is None else self.tau.double(),
            ends=wide,
            solver=Solver(self.solver.rows.double(), self.solver.clip),
        )


def assert_close(results, expected, tolerance=1e-5):
    for name, result, value in zip(("sample", "memory"), results, expected, strict=True):
        error = (result.double() - value).abs().max().item()
        assert error <= tolerance * max(1.0, value.abs().max().item()), name


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_solver_table_is_its_sampler(kind, prediction_type):
    sampler = solver_of(kind, prediction_type=prediction_type)
    solver = Solver.of(sampler)
    random = torch.Generator().manual_seed(0)
    memory = None
    for k in range(K):
        sample, output, noise = torch.randn(3, 2, 5, 2, generator=random)
        expected, kept = sampler.step(k, sample, output, noise, memory)
        result, x0 = solver.step(k, sample, output, noise, memory)
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
        if kept is not None:
            assert torch.equal(x0, kept)
        memory = kept


def test_a_sampler_without_a_table_is_refused():
    with pytest.raises(ValueError, match="have DDPM, DDIM"):
        Solver.of(object())


def test_the_ends_are_those_of_the_network():
    net = TransformerForDiffusion(2, 2, 5, n_obs_steps=2, cond_dim=3, n_layer=1, n_head=2, n_emb=8)
    torch.nn.init.normal_(net.ln_f.weight)
    net = net.double()
    ends = Ends(
        Linear(net.input_emb.weight, net.input_emb.bias),
        net.pos_emb[0],
        LayerNorm(net.ln_f.weight, net.ln_f.bias, net.ln_f.eps),
        Linear(net.head.weight, net.head.bias),
    )
    x, residual = torch.randn(3, 5, 2).double(), torch.randn(3, 5, 8).double()
    output = net.head(net.ln_f(net.input_emb(x) + net.pos_emb + residual))
    solver = Solver.of(solver_of("ddim").to("cpu", torch.float64))
    result, _ = reference.reused_run(x, None, x[None], [residual], None, ends, solver, 3, 4)
    expected, _ = solver.step(3, x, output, None, None)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_parity_of_samplers_and_predictors(device, draw, kind, order):
    run = Run(draw, (2, 5, 7, 40), kind, order)
    assert_close(run(triton_kernels.reused_run, 3, K), run.expected(3, K))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_parity_of_sizes(device, draw, size, dtype):
    run = Run(draw, size, order=1, dtype=dtype)
    # The state is float32: only results are rounded to 8 bits, which the interpreter cuts off
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    assert_close(run(triton_kernels.reused_run, 2, 6), run.expected(2, 6), tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("size", [(1, 16, 2, 256), (8, 10, 10, 512), (64, 16, 32, 768)])
def test_parity_at_the_sizes_of_policies(device, draw, size, order, dtype):
    run = Run(draw, size, order=order, dtype=dtype, steps=100)
    tolerance = 1e-4 if dtype == torch.float32 else 4e-3
    assert_close(run(triton_kernels.reused_run, 1, 100), run.expected(1, 100), tolerance)


@pytest.mark.gpu
def test_a_captured_run_reads_what_its_arguments_hold_at_replay(device, draw):
    run = Run(draw, (4, 16, 2, 256), order=1)
    run(triton_kernels.reused_run, 2, 6)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(triton_kernels.reused_run, 2, 6)
    run.sample.mul_(0.5)
    run.residuals[0].add_(0.25)
    graph.replay()
    assert_close(results, run.expected(2, 6))


def test_a_chain_starts_without_memory(device, draw):
    run = Run(draw, (1, 5, 2, 24), "dpm_solver")
    run.memory = None
    assert_close(run(triton_kernels.reused_run, 0, 4), run.expected(0, 4))


def test_two_runs_in_a_row_are_one(device, draw):
    run = Run(draw, (2, 5, 2, 24), "dpm_solver", order=1)
    whole = run(triton_kernels.reused_run, 2, 9)
    sample, memory = run(triton_kernels.reused_run, 2, 5)
    parts = run(triton_kernels.reused_run, 5, 9, sample=sample, memory=memory)
    assert all(map(torch.equal, whole, parts))


def test_a_large_mean_costs_no_digits(device, draw):
    run = Run(draw, (1, 5, 2, 48))
    run.residuals[0].add_(100.0)
    assert_close(run(triton_kernels.reused_run, 2, K), run.expected(2, K), 1e-4)


def test_a_nan_stays_in_its_token(device, draw):
    run = Run(draw, (2, 5, 7, 24))
    expected, _ = run.expected(2, 6)
    run.sample[1, 3, 0] = torch.nan
    result, _ = run(triton_kernels.reused_run, 2, 6)
    assert result[1, 3].isnan().all()
    others = ~result.isnan().any(dim=-1)
    assert others.sum() == 9
    torch.testing.assert_close(result[others].double(), expected[others], rtol=1e-5, atol=1e-5)


def test_what_the_kernel_cannot_take_is_refused(draw):
    run = Run(draw, (1, 2, 33, 64))
    with pytest.raises(ValueError, match="up to 32 actions"):
        run(triton_kernels.reused_run, 0, 1)
    run = Run(draw, (1, 2, 2, 8), order=1)
    with pytest.raises(ValueError, match="with tau"):
        run(triton_kernels.reused_run, 0, 1, tau=None)
    with pytest.raises(ValueError, match="at least one step"):
        run(triton_kernels.reused_run, 3, 3)
    with pytest.raises(ValueError, match="float32"):
        run(triton_kernels.reused_run, 0, 1, tau=run.tau.double())
