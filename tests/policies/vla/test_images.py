"""Pictures as patches: against transformers' own processor, and bad pictures."""

import pytest
import torch

from fastloop.policies.vla.images import PatchConfig, patches, resized_shape

pytest.importorskip("PIL", reason="pictures are resized with pillow (extra vla)")

SIZES = [(972, 1079), (1280, 1920), (900, 1600), (28, 28), (30, 45), (300, 57), (56, 3000), (1, 1)]


def pictures(*sizes, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(256, (3, *s), generator=random, dtype=torch.uint8) for s in sizes]


@pytest.mark.parametrize(
    ("least", "most"), [(3136, 28 * 28 * 1280), (200704, 200704), (784, 50176), (50000, 60000)]
)
def test_equal_to_transformers(least, most):
    theirs = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = theirs.Qwen2VLImageProcessorPil(min_pixels=least, max_pixels=most)
    frames = pictures(*SIZES)
    expected = processor(images=[f.numpy() for f in frames], return_tensors="pt",
                         input_data_format="channels_first")  # fmt: skip
    pixels, grid = patches(frames, PatchConfig(least, most))
    assert torch.equal(grid, expected["image_grid_thw"])
    assert torch.equal(pixels, expected["pixel_values"])


@pytest.mark.parametrize("patch", [PatchConfig(64, 4096, 4, 2, 1), PatchConfig(64, 9999, 8, 1, 3)])
def test_equal_to_transformers_with_other_patches(patch):
    theirs = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = theirs.Qwen2VLImageProcessorPil(
        min_pixels=patch.min_pixels, max_pixels=patch.max_pixels, patch_size=patch.patch,
        merge_size=patch.merge, temporal_patch_size=patch.frames,
    )  # fmt: skip
    frames = pictures((72, 128), (40, 40))
    expected = processor(images=[f.numpy() for f in frames], return_tensors="pt")
    pixels, grid = patches(frames, patch)
    assert torch.equal(grid, expected["image_grid_thw"])
    assert torch.equal(pixels, expected["pixel_values"])


def test_tokens_of_the_usual_cameras():
    config = PatchConfig(200704, 200704)
    tokens = [h * w // 784 for h, w in (resized_shape(*size, config) for size in SIZES[:3])]
    assert tokens == [240, 247, 231]


@pytest.mark.parametrize(
    "frame",
    [
        torch.zeros(1, 32, 32, dtype=torch.uint8),
        torch.zeros(4, 32, 32, dtype=torch.uint8),
        torch.zeros(32, 32, 3, dtype=torch.uint8),
        torch.zeros(32, 32, dtype=torch.uint8),
        torch.zeros(3, 32, 32),
        torch.zeros(3, 0, 32, dtype=torch.uint8),
    ],
)
def test_what_is_no_picture_is_named(frame):
    with pytest.raises(ValueError, match=r"picture 1 is .* expected \(3, height, width\) uint8"):
        patches([*pictures((28, 28)), frame], PatchConfig())


def test_strips_are_refused():
    with pytest.raises(ValueError, match="picture 0 is 1 x 201 pixels, over 200 times"):
        patches(pictures((1, 201)), PatchConfig())


@pytest.mark.parametrize("wrong", [{"patch": 0}, {"min_pixels": 99, "max_pixels": 98}])
def test_impossible_configurations(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        PatchConfig(**wrong)
