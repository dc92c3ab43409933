"""The image encoder against a by-hand forward over its state dict, its crops and its tokens."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.resnet import ResNet18
from fastloop.policies.diffusion.vision import (
    ImageEncoder,
    ObservationEncoder,
    SpatialSoftmax,
    VisionConfig,
    center_crop,
    module_name,
    random_crop,
)
from fastloop.policies.spec import TensorSpec


def by_hand(w, x):
    """ResNet-18 with group norm, keypoints and the last linear, from a state dict alone."""

    def conv(x, key, stride):
        weight = w[f"{key}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x, key):
        n, c, height, width = x.shape
        groups = x.reshape(n, c // 16, -1)
        mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, correction=0, keepdim=True)
        x = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(n, c, height, width)
        return x * w[f"{key}.weight"][:, None, None] + w[f"{key}.bias"][:, None, None]

    x = norm(conv(x, "backbone.conv1", 2), "backbone.bn1").clamp(min=0)
    x = F.max_pool2d(x, 3, 2, 1)
    for layer in range(1, 5):
        for block in range(2):
            key = f"backbone.layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            skip = x
            if stride == 2:
                skip = norm(conv(x, f"{key}.downsample.0", 2), f"{key}.downsample.1")
            x = norm(conv(x, f"{key}.conv1", stride), f"{key}.bn1").clamp(min=0)
            x = (norm(conv(x, f"{key}.conv2", 1), f"{key}.bn2") + skip).clamp(min=0)
    heat = torch.einsum("kc,nchw->nkhw", w["pool.nets.weight"][:, :, 0, 0], x)
    heat = torch.exp((heat + w["pool.nets.bias"][:, None, None]) / w["pool.temperature"])
    points = []
    _, count, height, width = heat.shape
    for i in range(count):
        total = heat[:, i].sum((1, 2))
        xs = sum(heat[:, i, :, c].sum(1) * (-1 + 2 * c / (width - 1)) for c in range(width))
        ys = sum(heat[:, i, r].sum(1) * (-1 + 2 * r / (height - 1)) for r in range(height))
        points += [xs / total, ys / total]
    return torch.stack(points, 1) @ w["linear.weight"].T + w["linear.bias"]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("relu", [False, True])
def test_image_encoder_equals_the_forward_pass_by_hand(relu, count):
    torch.manual_seed(0)
    config = VisionConfig((70, 41), num_keypoints=3, feature_dim=5, final_relu=relu)
    encoder = ImageEncoder((3, 73, 44), config).double().eval()
    encoder.pool.temperature.fill_(0.5)
    for module in encoder.modules():
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    images = torch.randn(count, 3, 73, 44).double()
    expected = by_hand(encoder.state_dict(), images[:, :, 2:72, 2:43])
    with torch.no_grad():
        result = encoder(images)
    torch.testing.assert_close(
        result, expected.clamp(min=0) if relu else expected, rtol=1e-6, atol=1e-6
    )


def test_resnet_has_the_keys_and_the_size_of_torchvisions():
    with torch.device("meta"):
        net = ResNet18()
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert sum(p.numel() for p in net.parameters()) == 11_689_512 - 513_000  # less the classifier
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    assert shapes["layer2.0.downsample.1.bias"] == (128,)
    assert shapes["layer4.1.conv2.weight"] == (512, 512, 3, 3)
    assert len(shapes) == 60
    names = [name for name, _ in net.named_children()]
    assert names == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]


def test_spatial_softmax_finds_a_peak():
    pool = SpatialSoftmax(1, 5, 9, 1)
    torch.nn.init.constant_(pool.nets.weight, 100.0)
    maps = torch.zeros(4, 1, 5, 9)
    for i, (row, column) in enumerate([(0, 0), (4, 8), (2, 4), (1, 8)]):
        maps[i, 0, row, column] = 1
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [1.0, -0.5]])
    torch.testing.assert_close(pool(maps)[:, 0], expected)


def test_crops():
    images = torch.arange(5 * 2 * 9 * 8).reshape(5, 2, 9, 8)
    assert torch.equal(center_crop(images, (5, 4)), images[:, :, 2:7, 2:6])
    assert torch.equal(center_crop(images, (9, 8)), images)
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        for image, crop in zip(images, random_crop(images, (8, 6)), strict=True):
            top, left = divmod(int(crop[0, 0, 0] - image[0, 0, 0]), 8)
            assert torch.equal(crop, image[:, top : top + 8, left : left + 6])
            seen.add((top, left))
    assert seen == {(top, left) for top in range(2) for left in range(3)}


def test_random_crop_in_training_only():
    torch.manual_seed(0)
    encoder = ImageEncoder((3, 44, 44), VisionConfig((36, 36), 4, 6))
    images = torch.randn(1, 3, 44, 44).expand(6, -1, -1, -1)
    with torch.no_grad():
        assert len(encoder(images).unique(dim=0)) > 1
        encoder.eval()
        assert torch.equal(encoder(images), encoder(images))


INPUTS = {
    "observation.images.top": TensorSpec((3, 40, 40), "uint8"),
    "observation.state": TensorSpec((4,)),
    "observation.images.wrist": TensorSpec((3, 36, 38), "uint8"),
    "observation.environment_state": TensorSpec((2, 3)),
}


def observation_encoder():
    torch.manual_seed(0)
    encoder = ObservationEncoder(INPUTS, VisionConfig((36, 36), 4, 6)).eval()
    normalizer = LinearNormalizer()
    for key, spec in INPUTS.items():
        if len(spec.shape) == 3:
            normalizer.set_image(key)
        else:
            width = spec.shape[-1]
            normalizer.set_field(key, torch.full((width,), 2.0), torch.ones(width))
    observations = {
        key: torch.randint(256, (2, 3, *spec.shape), dtype=torch.uint8)
        if spec.dtype == "uint8"
        else torch.randn(2, 3, *spec.shape)
        for key, spec in INPUTS.items()
    }
    return encoder, normalizer, observations


def test_tokens_follow_the_order_of_the_spec():
    encoder, normalizer, observations = observation_encoder()
    with torch.no_grad():
        tokens = encoder(observations, normalizer)
        top = encoder.obs_nets["observation:images:top"]
        frame = observations["observation.images.top"][1, 2, :, 2:38, 2:38] / 255 * 2 - 1
        alone = top(frame[None])[0]
    assert tokens.shape == (2, 3, encoder.width) == (2, 3, 6 + 4 + 6 + 6)
    torch.testing.assert_close(tokens[1, 2, :6], alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(tokens[..., 6:10], observations["observation.state"] * 2 + 1)
    last = observations["observation.environment_state"] * 2 + 1
    assert torch.equal(tokens[..., 16:], last.flatten(2))


def test_float_images_and_scales_per_channel():
    encoder, normalizer, observations = observation_encoder()
    with torch.no_grad():
        expected = encoder(observations, normalizer)
        key = "observation.images.top"
        normalizer.set_field(key, torch.full((3,), 2.0), torch.full((3,), -1.0))
        floating = {**observations, key: observations[key] / 255}
        torch.testing.assert_close(encoder(floating, normalizer), expected, rtol=1e-5, atol=1e-5)
        normalizer.set_field(key, torch.tensor([2.0, 1.0, 2.0]), torch.full((3,), -1.0))
        changed = (encoder(floating, normalizer) - expected).abs().amax((0, 1)) > 1e-4
        assert changed.tolist() == [True] * 6 + [False] * 16


def test_keys_and_gradients():
    encoder, normalizer, observations = observation_encoder()
    name = module_name("observation.images.wrist")
    assert name.replace(":", ".") == "observation.images.wrist"
    assert f"obs_nets.{name}.backbone.layer1.0.conv1.weight" in encoder.state_dict()
    assert f"obs_nets.{name}.pool.grid" not in encoder.state_dict()
    encoder(observations, normalizer).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_bad_shapes_and_keys_are_refused():
    with pytest.raises(ValueError, match="cannot crop 76x76 out of images of 64x96"):
        ImageEncoder((3, 64, 96), VisionConfig())
    with pytest.raises(ValueError, match="would be blind"):
        ImageEncoder((3, 64, 96), VisionConfig((32, 32)))
    with pytest.raises(ValueError, match="contains ':'"):
        module_name("a:b")
