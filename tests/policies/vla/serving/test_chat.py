import base64
import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.policies.vla.prompt import load_template
from fastloop.policies.vla.serving.chat import chat_messages, encode_png


def decode_png(data):
    """The picture (3, H, W) of a PNG of one chunk of pixels, by the letter of the standard."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size :][:4])[0] == zlib.crc32(name + content)
        chunks[name] = content
        at += size + 12
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind == [8, 2, 0, 0, 0]
    pixels = zlib.decompress(chunks[b"IDAT"])
    above, rows = [0] * (3 * width), []
    for y in range(height):
        line = pixels[y * (3 * width + 1) :][: 3 * width + 1]
        assert line[0] == 2
        above = [(value + up) % 256 for value, up in zip(line[1:], above, strict=True)]
        rows.append(above)
    return torch.tensor(rows, dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)


def picture(height, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=random)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_png_holds_the_picture(height, width, seed):
    frame = picture(height, width, seed)
    assert torch.equal(decode_png(encode_png(frame)), frame)
    turned = frame.transpose(1, 2)  # any view will do
    assert torch.equal(decode_png(encode_png(turned)), turned)


def test_png_as_pillow_reads_it():
    image = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    frame = picture(33, 47)
    import io

    with image.open(io.BytesIO(encode_png(frame))) as opened:
        read = torch.from_numpy(numpy.array(opened.convert("RGB")))
    assert torch.equal(read.permute(2, 0, 1), frame)


@pytest.mark.parametrize("shape", [(3, 4), (1, 4, 4), (4, 4, 3), (3, 0, 4)])
def test_what_is_no_picture(shape):
    with pytest.raises(ValueError, match="uint8, got"):
        encode_png(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match="float32"):
        encode_png(torch.zeros(3, 2, 2))


def test_a_question_becomes_messages_with_pictures_where_they_stand():
    template = load_template("fast_ddrive")
    frames = [picture(2, 3, seed) for seed in range(3)]
    question = template.write(torch.zeros(16, 6), 1, 3)
    system, user = chat_messages(question, frames)
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["text", "image_url", "image_url", "image_url", "text"]
    first, *pictures, last = user["content"]
    assert first["text"].endswith("Input:\n- ")
    assert last["text"].startswith(": three front-view frames")
    assert last["text"].endswith("Output:")
    for part, frame in zip(pictures, frames, strict=True):
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        assert torch.equal(decode_png(base64.b64decode(data)), frame)
    told = "".join(part.get("text", "") for part in user["content"])
    pad = "<|vision_start|><|image_pad|><|vision_end|>"
    assert told == question.split("user\n")[1].split("<|im_end|>")[0].replace(pad, "")


def test_a_question_without_pictures_is_plain_text():
    (message,) = chat_messages("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", [])
    assert message == {"role": "user", "content": "hello"}


def test_questions_that_do_not_fit():
    with pytest.raises(ValueError, match="im_start"):
        chat_messages("hello", [])
    question = load_template("short").write(torch.zeros(16, 6), 1, 2)
    with pytest.raises(ValueError, match="2 pictures, got 1"):
        chat_messages(question, [picture(2, 2)])
