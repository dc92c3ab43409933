"""Images of every encoding become the same picture; what is damaged says how."""

import io

import numpy as np
import pytest
import torch

from fastloop.deploy.conversions.image import ENCODINGS, Picture
from fastloop.deploy.messages import BadMessage, Messages

pytest.importorskip("rosbags", reason="messages are of it (extra ros)")
images = pytest.importorskip("PIL.Image", reason="pictures are decoded by it (extra ros)")

MESSAGES = Messages()
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
PICTURE = torch.from_numpy(PIXELS).permute(2, 0, 1)


def picture(message, **settings):
    return Picture(**settings)(message)


def raw(pixels, encoding, *, padding=0):
    """An Image whose rows end in some bytes that are none of its own."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    rows = np.concatenate([rows, np.full((height, padding), 77, np.uint8)], axis=1)
    message = MESSAGES.type("sensor_msgs/msg/Image")(
        MESSAGES.header(1, "camera"), height, width, encoding, 0, rows.shape[1], rows.reshape(-1)
    )
    return MESSAGES.decode("sensor_msgs/msg/Image", MESSAGES.encode(message))


def compressed(form, pixels=PIXELS, cut=None):
    file = io.BytesIO()
    images.fromarray(pixels).save(file, form, **({"quality": 95} if form == "jpeg" else {}))
    data = np.frombuffer(file.getvalue()[:cut], np.uint8)
    return MESSAGES.type("sensor_msgs/msg/CompressedImage")(
        MESSAGES.header(1, "camera"), form, data
    )


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "8UC3"])
def test_colors_are_where_they_belong(encoding, padding):
    pixels = PIXELS if encoding.startswith("rgb") else PIXELS[..., ::-1]
    if ENCODINGS[encoding][0] == 4:
        pixels = np.concatenate([pixels, np.full((48, 64, 1), 9, np.uint8)], axis=2)
    found = picture(raw(pixels, encoding, padding=padding), dtype="uint8")
    assert found.dtype == torch.uint8
    assert torch.equal(found, PICTURE)
    assert torch.equal(picture(raw(pixels, encoding)), PICTURE.to(torch.float32) / 255)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_gray_is_gray(encoding):
    found = picture(raw(PIXELS[..., :1], encoding), dtype="uint8")
    assert torch.equal(found, PICTURE[:1].expand(3, -1, -1))


def test_png_is_exact_and_jpeg_is_close():
    assert torch.equal(picture(compressed("png"), dtype="uint8"), PICTURE)
    smooth = np.repeat(np.arange(48, dtype=np.uint8)[:, None, None] * 4, 64, axis=1).repeat(3, 2)
    found = picture(compressed("jpeg", smooth), dtype="uint8").int()
    assert (found - torch.from_numpy(smooth).permute(2, 0, 1).int()).abs().max() <= 4


def test_a_gray_file_has_three_colors():
    assert picture(compressed("png", PIXELS[..., 0])).shape == (3, 48, 64)


def test_it_is_scaled_where_that_is_asked():
    flat = np.full((48, 64, 3), (10, 20, 250), np.uint8)
    found = picture(raw(flat, "rgb8"), size=(12, 20), dtype="uint8")
    assert found.shape == (3, 12, 20)
    assert found.flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 250]
    assert picture(raw(flat, "rgb8"), size=(96, 96)).amax() <= 1


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_a_file_that_is_cut_off_is_bad_wherever_it_was_cut(form):
    length = len(compressed(form).data)
    for cut in [0, 1, 10, *range(20, length - 1, max(1, length // 40))]:
        with pytest.raises(BadMessage, match=f"'{form}'.* cannot be decoded"):
            picture(compressed(form, cut=cut))


def test_another_kind_of_file_is_bad():
    message = compressed("png")
    message.data = np.frombuffer(b"GIF89a" + bytes(50), np.uint8)
    with pytest.raises(BadMessage, match="cannot be decoded"):
        picture(message)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("encoding", "yuv422", "'yuv422'; have: rgb8"),
        ("height", 49, "9216 bytes in all; expected 192 or more a row and 9408 in all"),
        ("width", 65, "expected 195 or more a row"),
        ("step", 191, "rows of 191 bytes"),
        ("height", 0, "64 x 0 pixels"),
        ("data", np.zeros(10, np.uint8), "10 bytes in all"),
    ],
)
def test_parts_that_do_not_fit_are_named(field, value, says):
    message = raw(PIXELS, "rgb8")
    setattr(message, field, value)
    with pytest.raises(BadMessage, match=says):
        picture(message)


def test_a_size_that_would_take_all_memory_is_refused(monkeypatch):
    monkeypatch.setattr("fastloop.deploy.conversions.image._LARGEST", 1000)
    with pytest.raises(BadMessage, match="64 x 48 pixels is too large"):
        picture(compressed("png"))


def test_a_dtype_that_is_none():
    with pytest.raises(ValueError, match="float32, uint8"):
        picture(raw(PIXELS, "rgb8"), dtype="float16")
