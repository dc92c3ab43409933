"""Stages of training on toys: what they learn, that resuming changes nothing, what is refused."""

from dataclasses import replace

import pytest
import torch

from fastloop.accel.decoding.autoregressive import Autoregressive
from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.accel.decoding.speculative import Speculative
from fastloop.policies.training import TrainConfig
from fastloop.policies.vla.prompt import Prompt
from fastloop.policies.vla.qwen25vl import Qwen25VL
from fastloop.policies.vla.samples import Sample
from fastloop.policies.vla.training import STAGES, StageConfig, build_trainer

MASK, STOP, VOCAB = 95, 97, 128
CASES = 8
SECTIONS = ("critical_objects", "explanation", "trajectory")
EMPTY = torch.zeros(0, 1176), torch.zeros(0, 3, dtype=torch.int64)


def canvas(case=0):
    """46 slots, 24 values in 4 blocks; every value is a function of the case and of its place."""
    given = torch.ones(46, dtype=torch.bool)
    given[[s for start in (3, 15, 27, 38) for s in range(start, start + 6)]] = False
    block = torch.repeat_interleave(torch.arange(4), torch.tensor([12, 12, 12, 10]))
    places = torch.arange(46)
    allowed = torch.zeros(1, VOCAB, dtype=torch.bool)
    allowed[0, :16] = True
    return Canvas(
        tokens=torch.where(given, 20 + places, (case * (1 + places % 3) + places) % 16),
        given=given, block=block, section=(block + 1) // 2,
        kind=torch.zeros(46, dtype=torch.int64), allowed=allowed, sections=SECTIONS,
    )  # fmt: skip


SAMPLES = [
    Sample(Prompt(torch.tensor([70, 71 + case]), *EMPTY), canvas(case)) for case in range(CASES)
]
SPEC = ModelSpec(Regime.CAUSAL_CONTEXT, vocab=VOCAB, mask_id=MASK, stop_id=STOP, block_size=8)
SPECS = dict.fromkeys(STAGES, SPEC) | {"prefix_lm": replace(SPEC, regime=Regime.PREFIX_LM)}
CONFIG = TrainConfig(
    steps=60, batch_size=8, lr=8e-3, warmup_steps=5, autocast=False, weight_decay=0.0
)


@pytest.fixture
def network(tiny_network):
    """A function (hidden) -> a network of two layers."""

    def build(hidden=32):
        quarter = hidden // 4 // 2 // 4
        made = tiny_network(
            torch.float32, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
            rope_parameters={
                "rope_type": "default", "rope_theta": 1e4,
                "mrope_section": [quarter, quarter, 2 * quarter],
            },
        )  # fmt: skip
        made.model.visual.requires_grad_(False)
        return made

    return build


@pytest.mark.slow
def test_a_toy_learns_to_draft_what_it_would_say(network):
    model = network(64)
    trainer = build_trainer(model, SPEC, SAMPLES, StageConfig(), CONFIG)
    losses = [trainer.advance() for _ in range(CONFIG.steps)]
    assert sum(losses[-3:]) / 3 < losses[0] / 20
    decoder = Qwen25VL(model, SPEC)
    prompts = [sample.prompt for sample in SAMPLES]
    wanted = torch.stack([sample.canvas.tokens for sample in SAMPLES])

    def decode(driver):
        context = decoder.prefill(prompts, room=2 * len(canvas()))
        return driver.decode(decoder, context, canvas(), continued=False)

    fast, slow = decode(Speculative()), decode(Autoregressive())
    assert torch.equal(fast.tokens, slow.tokens)
    assert (fast.tokens == wanted).float().mean() > 0.98
    assert fast.accepted > 0.9 * fast.drafted > 0
    assert fast.network_evaluations <= 2 * 4 + 3 < slow.network_evaluations / 2


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_learns(network, stage):
    config = replace(CONFIG, steps=15)
    settings = StageConfig(stage=stage, block_size=8)
    trainer = build_trainer(network(), SPECS[stage], SAMPLES, settings, config)
    losses = [trainer.advance() for _ in range(15)]
    assert sum(losses[-3:]) < 0.85 * sum(losses[:3])


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_unbroken_one(network, tmp_path, stage):
    config, spec = replace(CONFIG, steps=8, batch_size=3), SPECS[stage]
    settings = StageConfig(stage=stage, block_size=8)

    def fresh():
        return build_trainer(network(), spec, SAMPLES, settings, config, facts={"data": "toy"})

    unbroken, first, second = fresh(), fresh(), fresh()
    losses = [unbroken.advance() for _ in range(6)]
    assert [first.advance() for _ in range(3)] == losses[:3]
    first.save(tmp_path / "state.pt")
    second.resume(tmp_path / "state.pt")
    assert [second.advance() for _ in range(3)] == losses[3:]
    for ours, theirs in (
        (second.model.state_dict(), unbroken.model.state_dict()),
        (second.ema.averaged.state_dict(), unbroken.ema.averaged.state_dict()),
    ):
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    other = build_trainer(
        network(), spec, SAMPLES, replace(settings, eps=0.5), config, facts={"data": "toy"}
    )
    with pytest.raises(ValueError, match="other settings"):
        other.resume(tmp_path / "state.pt")


def test_blocks_grow_with_the_steps(network):
    settings = StageConfig(stage="block_diffusion", block_size=8)
    config = replace(CONFIG, steps=6)

    def sizes(trainer):
        return [int((trainer.batch(step)["block"][0] == 0).sum()) for step in range(config.steps)]

    assert sizes(build_trainer(network(), SPEC, SAMPLES, settings, config)) == [2, 2, 4, 4, 8, 8]
    settings = replace(settings, anneal=False, block_size=6)
    assert sizes(build_trainer(network(), SPEC, SAMPLES, settings, config)) == [6] * 6


def test_what_is_frozen_stays_and_norms_do_not_decay(network):
    model = network()
    before = {k: v.clone() for k, v in model.model.visual.state_dict().items()}
    config = replace(CONFIG, steps=2, weight_decay=0.5)
    trainer = build_trainer(model, SPEC, SAMPLES, StageConfig(), config)
    decay = {id(p): g["weight_decay"] for g in trainer.optimizer.param_groups for p in g["params"]}
    layer = model.model.language_model.layers[0]
    assert decay[id(layer.mlp.up_proj.weight)] == 0.5
    assert decay[id(layer.input_layernorm.weight)] == decay[id(layer.self_attn.q_proj.bias)] == 0
    assert not {id(p) for p in model.model.visual.parameters()} & set(decay)
    trainer.advance()
    assert all(torch.equal(v, before[k]) for k, v in model.model.visual.state_dict().items())
    assert not torch.equal(trainer.ema.averaged.model.lm_head.weight, network().lm_head.weight)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (StageConfig(stage="sft"), "unknown stage 'sft'; have: autoregressive, block_diffusion"),
        (StageConfig(stage="block_diffusion", block_size=24), "power of two"),
        (StageConfig(block_size=0), "at least one slot"),
        (StageConfig(noise={"trajectries": [1, 1]}), "noise names trajectries; the sections are"),
        (StageConfig(weights={"x": 1.0}), "weights names x"),
        (StageConfig(noise={"trajectory": [1, 0]}), "both above 0"),
        (StageConfig(noise={"trajectory": [1]}), r"must be \(a, b\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(network, settings, named):
    with pytest.raises(ValueError, match=named):
        build_trainer(network(), SPEC, SAMPLES, settings, CONFIG)


def test_models_and_data_that_cannot_be_trained_are_refused(network):
    model = network()
    with pytest.raises(ValueError, match="no samples"):
        build_trainer(model, SPEC, [], StageConfig(), CONFIG)
    with pytest.raises(ValueError, match="structured does not make a model full, only causal_con"):
        build_trainer(model, replace(SPEC, regime=Regime.FULL), SAMPLES, StageConfig(), CONFIG)
    with pytest.raises(ValueError, match="prefix_lm does not make a model causal_context, only pr"):
        build_trainer(model, SPEC, SAMPLES, StageConfig(stage="prefix_lm"), CONFIG)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="'eager' reads no boolean masks"):
        build_trainer(model, SPEC, SAMPLES, StageConfig(), CONFIG)
