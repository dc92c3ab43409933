"""The training loop: resumed runs, refusals, and losses that fall."""

import math
import os
import resource
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastloop.policies.diffusion.transformer import TransformerForDiffusion
from fastloop.policies.training import TrainConfig, Trainer, learning_rate

CONFIG = TrainConfig(steps=30, batch_size=8, lr=1e-2, warmup_steps=3, autocast=False)


class Toy(nn.Module):
    """Two layers and dropout, so that resuming has random numbers to get right."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.2), nn.Tanh())
        self.outer = nn.Linear(16, 2)

    def forward(self, x):
        return self.outer(self.inner(x))


def batch(step):
    random = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3, generator=random)
    return {"x": x, "y": x[:, :2] * 0.5 + 1}


def trainer(config=CONFIG, facts=None, spoil=None):
    model = Toy()

    def loss(batch, generator):
        noise = 0.01 * torch.randn(batch["y"].shape, generator=generator)
        value = ((model(batch["x"]) - batch["y"] - noise) ** 2).mean()
        return value * math.nan if spoil == made.step else value

    made = Trainer(model, loss, batch, config, facts=facts)
    return made


def same(one, other):
    """Equal to the last bit: weights, averages and the optimizer's moments."""
    for ours, theirs in (
        (one.model.state_dict(), other.model.state_dict()),
        (one.ema.averaged.state_dict(), other.ema.averaged.state_dict()),
    ):
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    moments, others = one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
    for index, state in moments.items():
        assert all(torch.equal(value, others[index][key]) for key, value in state.items())
    assert one.step == other.step
    return True


@pytest.mark.parametrize("autocast", [False, True])
def test_a_resumed_run_is_the_unbroken_one(tmp_path, autocast):
    config = replace(CONFIG, autocast=autocast)
    unbroken = trainer(config)
    losses = [unbroken.advance() for _ in range(20)]
    first = trainer(config)
    assert [first.advance() for _ in range(7)] == losses[:7]
    first.save(tmp_path / "state.pt")
    torch.randn(5)
    second = trainer(config)
    second.resume(tmp_path / "state.pt")
    assert second.step == 7
    assert [second.advance() for _ in range(13)] == losses[7:]
    assert same(second, unbroken)


@pytest.mark.parametrize(
    ("config", "facts", "named"),
    [
        (replace(CONFIG, lr=2e-2), {"data": "a"}, "'lr': (0.01, 0.02)"),
        (replace(CONFIG, steps=40), {"data": "a"}, "'steps': (30, 40)"),
        (CONFIG, {"data": "b"}, "'data': ('a', 'b')"),
        (CONFIG, {"data": "a", "network": 3}, "'network': (None, 3)"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, config, facts, named):
    trainer(facts={"data": "a"}).save(tmp_path / "state.pt")
    other = trainer(config, facts)
    with pytest.raises(ValueError, match="other settings") as caught:
        other.resume(tmp_path / "state.pt")
    assert named in str(caught.value)
    assert other.step == 0


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_state_says_what_to_do(tmp_path, damage):
    path = tmp_path / "state.pt"
    trainer().save(path)
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "text": b"not a state", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"damaged .*; remove it to start again"):
        trainer().resume(path)


def test_a_state_cannot_carry_code(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"config": Hostile()}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="damaged"):
        trainer().resume(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


def test_a_kill_while_saving_leaves_the_state_before(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    one = trainer()
    one.advance()
    one.save(path)
    one.advance()

    class Killed(BaseException):
        """Stands for the moment between the two steps of saving."""

    def replaced(*_):
        raise Killed

    monkeypatch.setattr(os, "replace", replaced)
    with pytest.raises(Killed):
        one.save(path)
    monkeypatch.undo()
    other = trainer()
    other.resume(path)
    assert other.step == 1
    one.save(path)
    other.resume(path)
    assert other.step == 2


def test_a_full_disk_while_saving_leaves_the_state_before(tmp_path):
    path = tmp_path / "state.pt"
    one = trainer()
    one.save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*state.pt .*; the state saved before is"):
            one.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    one = trainer(spoil=4)
    for _ in range(4):
        one.advance()
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"became nan at step 4; .* lower train.lr"):
        one.advance()
    assert one.step == 4
    assert all(torch.equal(value, before[key]) for key, value in one.model.state_dict().items())


def test_the_learning_rate_rises_then_falls_to_nothing():
    config = replace(CONFIG, steps=100, warmup_steps=10, lr=2.0)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(("steps", "warmup"), [(5, 0), (5, 5), (5, 50), (1, 0)])
def test_the_learning_rate_of_short_runs(steps, warmup):
    config = replace(CONFIG, steps=steps, warmup_steps=warmup)
    assert all(0 < learning_rate(step, config) <= config.lr for step in range(steps))


def test_gradients_are_scaled_down_to_their_largest_length():
    lengths = []
    for limit in (0.0, 1e-3):
        one = trainer(replace(CONFIG, max_grad_norm=limit))
        norm = []
        step = one.optimizer.step

        def watched(step=step, norm=norm, one=one):
            gradients = [parameter.grad.flatten() for parameter in one.model.parameters()]
            norm.append(torch.cat(gradients).norm().item())
            return step()

        one.optimizer.step = watched
        one.advance()
        lengths += norm
    assert lengths[0] > 0.01
    assert lengths[1] == pytest.approx(1e-3, rel=1e-3)


def test_the_loss_falls_and_the_average_follows():
    one = trainer(replace(CONFIG, steps=300))
    losses = [one.advance() for _ in range(300)]
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    data = batch(10_000)
    error = ((one.ema.averaged(data["x"]) - data["y"]) ** 2).mean()
    assert error < 0.2 * losses[0]
    assert not one.ema.averaged.training


def test_parts_say_what_decays_and_everything_is_trained():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.free = nn.Parameter(torch.ones(2))
            self.encoder = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
            self.frozen = nn.Linear(2, 2).requires_grad_(False)
            self.model = TransformerForDiffusion(2, 2, 4, n_emb=8, n_head=2, n_layer=1)

    model = Whole()
    made = Trainer(model, lambda *_: None, lambda _: {}, replace(CONFIG, weight_decay=0.1))
    groups = made.optimizer.param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    trained = {id(p) for p in model.parameters() if p.requires_grad and p.numel()}
    assert set(held) == trained
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(model.free)] == decay[id(model.encoder[1].weight)] == 0.1
    assert decay[id(model.model.head.weight)] == 0.1
    assert decay[id(model.model.ln_f.weight)] == decay[id(model.model.pos_emb)] == 0.0


def test_a_module_without_parts_is_trained_too():
    made = Trainer(nn.Linear(2, 2), lambda *_: None, lambda _: {}, CONFIG)
    assert len(made.optimizer.param_groups[0]["params"]) == 2
