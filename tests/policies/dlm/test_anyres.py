"""Views of pictures: sizes, places and colors, and how many tokens they take up."""

import math

import pytest
import torch

from fastloop.policies.dlm.anyres import PINPOINTS, AnyRes, best_pinpoint, unpadded

pytest.importorskip("PIL", reason="pictures are resized with pillow (extra vla)")
SMALL = AnyRes(28, 14, ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84)))
SIZES = [(30, 30), (100, 37), (37, 100), (20, 90), (90, 20), (720, 1280), (1, 150), (384, 768)]


def picture(height, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("pinpoints", [PINPOINTS, PINPOINTS[::-1]])
def test_the_pinpoint_that_wastes_least(height, width, pinpoints):
    """As transformers chooses for LLaVA-NeXT; sizes there are (height, width)."""
    library = pytest.importorskip("transformers.image_processing_utils")
    turned = [(tall, wide) for wide, tall in pinpoints]
    tall, wide = library.select_best_resolution((height, width), turned)
    assert best_pinpoint(height, width, pinpoints) == (wide, tall)


def test_released_sizes():
    """A square picture: four parts, 28 lines of 28 tokens, each with its end, and the whole."""
    pixels, grid = AnyRes().cut([picture(800, 800), picture(720, 1280)])
    assert pixels.shape == (10, 3, 384, 384)
    assert pixels.dtype == torch.float32
    assert grid.tolist() == [[2, 2, 800, 800], [2, 2, 720, 1280]]
    assert AnyRes().tokens(grid).tolist() == [196 + 28 * 29, 196 + 16 * 29]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_parts_are_the_picture(height, width):
    """Put together again and freed of black edges they are the picture, scaled."""
    image = pytest.importorskip("PIL.Image")
    frame = picture(height, width)
    pixels, grid = SMALL.cut([frame])
    rows, columns = grid[0, :2].tolist()
    assert grid[0, 2:].tolist() == [height, width]
    assert len(pixels) == 1 + rows * columns
    sheet = torch.cat(
        [torch.cat(list(pixels[1 + r * columns : 1 + (r + 1) * columns]), 2) for r in range(rows)],
        1,
    )
    scale = min(28 * columns / width, 28 * rows / height)
    if 28 * columns / width < 28 * rows / height:
        wide, tall = 28 * columns, min(28 * rows, math.ceil(height * scale))
    else:
        wide, tall = min(28 * columns, math.ceil(width * scale)), 28 * rows
    top, left = (28 * rows - tall) // 2, (28 * columns - wide) // 2
    source = image.fromarray(frame.permute(1, 2, 0).numpy())

    def scaled(size):
        small = source.resize(size, resample=image.Resampling.BICUBIC)
        colors = torch.tensor(list(small.tobytes())).view(size[1], size[0], 3).permute(2, 0, 1)
        return colors / 127.5 - 1

    inside = sheet[:, top : top + tall, left : left + wide]
    assert torch.allclose(inside, scaled((wide, tall)), atol=1e-6)
    outside = torch.ones(sheet.shape[1:], dtype=torch.bool)
    outside[top : top + tall, left : left + wide] = False
    assert (sheet[:, outside] == -1).all()
    assert torch.allclose(pixels[0], scaled((28, 28)), atol=1e-6)


def test_unpadded():
    """In the middle, and as much as there is of the picture; all of it where it fits."""
    assert unpadded(28, 28, 10, 10) == (range(28), range(28))
    assert unpadded(28, 28, 720, 1280) == (range(6, 22), range(28))
    assert unpadded(28, 28, 1280, 720) == (range(28), range(6, 22))
    assert unpadded(14, 28, 10, 10) == (range(14), range(7, 21))
    lines, across = unpadded(28, 28, 1, 150)
    assert len(lines) == 0
    assert len(across) == 28


def test_no_picture():
    pixels, grid = SMALL.cut([])
    assert pixels.shape == (0, 3, 28, 28)
    assert grid.shape == (0, 4)
    assert SMALL.tokens(grid).tolist() == []


def test_refused():
    with pytest.raises(ValueError, match="picture 1 is"):
        SMALL.cut([picture(4, 4), torch.zeros(3, 4, 4)])
    with pytest.raises(ValueError, match="multiples of 28, got"):
        AnyRes(28, 14, ((56, 57),))
    with pytest.raises(ValueError, match=r"multiples of 28, got \[\]"):
        AnyRes(28, 14, ())
    with pytest.raises(ValueError, match="no patch"):
        AnyRes(28, 30, ((28, 28),))
