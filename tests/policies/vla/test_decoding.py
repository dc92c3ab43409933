"""Ways of decoding by name: what each becomes, on which models, and why not on others."""

from dataclasses import replace

import pytest
import torch

from fastloop.accel.decoding import (
    BlockWindow,
    CachedDiffusion,
    Canvas,
    Captured,
    Confidence,
    Elastic,
    Exactness,
    FlashBlock,
    Greedy,
    Guided,
    HierarchicalDiffusion,
    Learned,
    ModelSpec,
    Pruned,
    Regime,
    SectionDiffusion,
    SelfSpeculative,
    Skipping,
    compose,
    decode,
)
from fastloop.accel.decoding.commits import BlockFilter, Calibration
from fastloop.policies.dlm.decoder import Decoder
from fastloop.policies.dlm.filters import save_filter
from fastloop.policies.dlm.fused import Fused
from fastloop.policies.vla import decoding
from fastloop.policies.vla.decoding import (
    COMMITS,
    DENOISING,
    DRIVERS,
    PRUNINGS,
    DecodingConfig,
    build_driver,
    build_model,
)
from fastloop.policies.vla.prompt import Prompt

CANVAS = Canvas.free(10, 64, block_size=4, banned=(63,))


@pytest.fixture(scope="module")
def make():
    """A function (regime, **spec) -> a random model of four layers, passed through one by one."""
    transformers = pytest.importorskip("transformers", reason="it is a stock decoder (extra vla)")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    network = transformers.Qwen2ForCausalLM(config).eval().double()

    def make(regime, **spec):
        return Decoder(network, ModelSpec(regime, 64, 63, block_size=4, digest="d", **spec))

    return make


def built(model, canvas=CANVAS, **fields):
    config = DecodingConfig(**fields)
    model = build_model(config, model)
    return model, build_driver(config, model, Greedy(), canvas)


def test_all_drivers_that_denoise_are_drivers():
    assert DENOISING.items() <= DRIVERS.items()


@pytest.mark.parametrize("regime", Regime)
@pytest.mark.parametrize("name", DRIVERS)
def test_a_name_is_a_driver_or_a_reason(make, regime, name):
    model = make(regime)
    driver = DRIVERS[name](Greedy(), DecodingConfig(commit="credit"), model)
    if regime not in driver.regimes:
        with pytest.raises(ValueError, match=f"cannot be right on a {regime.value} model: "):
            built(model, driver=name, commit="credit")
        return
    fused, same = built(model, driver=name, commit="credit")
    assert same == driver
    decoded = decode(fused, [[3, 5, 7]], CANVAS, driver)
    assert torch.equal(decoded.tokens, decode(model, [[3, 5, 7]], CANVAS, driver).tokens)
    assert decoded.exactness is compose(model, driver, CANVAS)
    assert 63 not in decoded.tokens


@pytest.mark.parametrize(
    ("regime", "name", "expected"),
    [
        (Regime.FULL, "elastic_cache", Elastic(commit=Confidence(0.7))),
        (Regime.BLOCK_CAUSAL, "flash_block", FlashBlock(commit=Confidence(0.7))),
        (Regime.BLOCK_CAUSAL, "hierarchical", HierarchicalDiffusion(commit=Confidence(0.7))),
        (Regime.PREFIX_LM, "uncached", CachedDiffusion(commit=Confidence(0.7))),
        (Regime.PREFIX_LM, "", SectionDiffusion(commit=Confidence(0.7))),
        (Regime.CAUSAL_CONTEXT, "layer_skip", SelfSpeculative((1,))),
    ],
)
def test_what_a_name_is(make, regime, name, expected):
    model, driver = built(make(regime), driver=name, threshold=0.7)
    assert driver == expected
    assert not isinstance(model, Skipping)
    assert getattr(driver, "window", None) != BlockWindow() or isinstance(driver, CachedDiffusion)


def test_layers_are_joined_where_they_can_be(make, monkeypatch):
    model = make(Regime.CAUSAL_CONTEXT)
    joined = build_model(DecodingConfig(), model)
    assert isinstance(joined, Fused)
    assert joined.model is model
    monkeypatch.setattr(decoding, "joinable", lambda model: False)
    assert build_model(DecodingConfig(), model) is model
    monkeypatch.undo()
    monkeypatch.setenv("FASTLOOP_ACCEL", "off")
    assert build_model(DecodingConfig(), model) is model


def test_captured_is_what_is_left_of_the_model(make, monkeypatch):
    model = make(Regime.CAUSAL_CONTEXT)
    captured, driver = built(model, captured=True)
    assert isinstance(captured, Captured)
    assert isinstance(captured.model, Fused)
    expected = decode(model, [[3, 5, 7]], CANVAS, driver)
    assert torch.equal(decode(captured, [[3, 5, 7]], CANVAS, driver).tokens, expected.tokens)
    skipping, _ = built(make(Regime.PREFIX_LM, native=True), captured=True, skip=[1])
    assert skipping.layers == 3
    assert isinstance(skipping, Captured)
    monkeypatch.setenv("FASTLOOP_ACCEL", "off")
    assert build_model(DecodingConfig(captured=True), model) is model


def test_layers_are_skipped_in_drafts_or_in_every_pass(make):
    model, driver = built(make(Regime.CAUSAL_CONTEXT), driver="layer_skip", skip=[2])
    assert driver == SelfSpeculative((2,))
    assert compose(model, driver) is Exactness.LOSSLESS
    native, driver = built(make(Regime.FULL, native=True), skip=[1, 2])
    assert isinstance(native, Skipping)
    assert native.kept == (0, 3)
    assert compose(native, driver) is Exactness.LOSSY
    for skip, reason in (([1], "began as an autoregressive one"), ([4], "of 0 to 3")):
        with pytest.raises(ValueError, match=reason):
            built(make(Regime.FULL), skip=skip)


@pytest.mark.parametrize("name", PRUNINGS)
def test_pictures_are_pruned_by_name(make, name):
    model, driver = built(make(Regime.PREFIX_LM), prune=name, kept=0.3)
    assert isinstance(model, Pruned)
    assert compose(model, driver, CANVAS) is Exactness.LOSSY
    assert all(share <= 0.3 for _, share in model.keep)
    assert (model.keep[0][0] == 0) == (name in ("withdrawn", "early"))
    with pytest.raises(ValueError, match="a full model keeps no prompt"):
        built(make(Regime.FULL), prune=name)
    with pytest.raises(ValueError, match="prunes hold fewer"):
        built(make(Regime.PREFIX_LM), prune=name, driver="dual_cache")


def test_guidance(make):
    base = make(Regime.PREFIX_LM)
    model, driver = built(base, guidance=1.5)
    assert isinstance(model, Guided)
    assert compose(model, driver) is Exactness.EXACT_KV
    shown = Prompt(torch.tensor([4, 5, 6]), torch.ones(2, 7), torch.ones(1, 3, dtype=torch.int64))
    unasked = model.null(shown)
    assert unasked.ids.tolist() == [63] * 3
    assert (len(unasked.pixels), len(unasked.grid)) == (0, 0)
    assert model.null([4, 5]).tolist() == [63, 63]
    decoded = decode(model, [[4, 5, 6]], CANVAS, driver)
    expected = decode(Guided(base, 1.5), [[4, 5, 6]], CANVAS, driver)
    assert torch.equal(decoded.tokens, expected.tokens)
    with pytest.raises(ValueError, match="never trained on prompts that are masked"):
        built(make(Regime.CAUSAL_CONTEXT), guidance=1.0)


def test_a_filter_by_its_path(make, tmp_path):
    made = BlockFilter(
        Calibration("d", 4), torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4)
    )
    path = str(tmp_path / "filter.safetensors")
    save_filter(path, made)
    _, driver = built(make(Regime.BLOCK_CAUSAL), commit="learned", filter=path, threshold=0.6)
    assert isinstance(driver.commit, Learned)
    assert driver.commit.threshold == 0.6
    for model, canvas, fields, reason in (
        (make(Regime.BLOCK_CAUSAL), Canvas.free(9, 64, block_size=3), {}, "largest .* has 3"),
        (make(Regime.PREFIX_LM), CANVAS, {"guidance": 1.0}, "not of 'd, guided by 1'"),
        (make(Regime.PREFIX_LM), CANVAS, {"prune": "late"}, "not of 'd, pictures pruned"),
        (
            make(Regime.BLOCK_CAUSAL),
            CANVAS,
            {"filter": path + "x"},
            "cannot be read as safetensors",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            built(model, canvas, **{"commit": "learned", "filter": path, **fields})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"commit": "learned"}, "needs the path of a filter"),
        ({"filter": "f"}, "no other takes one"),
        ({"prune": "half"}, "unknown prune 'half'; have: withdrawn, early, late, progressive"),
        ({"commit": "all"}, f"unknown commit 'all'; have: {', '.join(COMMITS)}"),
    ],
)
def test_what_means_nothing(fields, reason):
    with pytest.raises(ValueError, match=reason):
        DecodingConfig(**fields)


def test_off_leaves_nothing_out(make, monkeypatch):
    monkeypatch.setenv("FASTLOOP_ACCEL", "off")
    base = make(Regime.PREFIX_LM)
    model, driver = built(base, prune="late", commit="learned", filter="nowhere", skip=[1])
    assert model is base
    assert compose(model, driver) is Exactness.EXACT_KV
    assert driver.commit.passes(7) == 7
    guided, _ = built(base, guidance=1.0)  # which is no acceleration
    assert isinstance(guided, Guided)
    assert replace(guided.spec, digest="d", guided=0.0) == base.spec
