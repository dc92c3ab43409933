"""One row drafts for all branches, and every branch chooses for itself."""

from dataclasses import dataclass

import pytest
import torch

from fastloop.accel.decoding import Canvas, Speculative
from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.drafter import Drafter
from fastloop.accel.decoding.passes import Passes


@dataclass(frozen=True)
class Placed:
    """A choice by row and position, whatever the logits say: wrong in rows that `spoils`."""

    spoils: tuple[int, ...] = ()

    def __call__(self, logits, positions, tokens=None):
        rows = torch.arange(len(logits))[:, None]
        wrong = torch.isin(rows, torch.tensor(self.spoils, dtype=torch.int64))
        return (positions + 7 * rows + wrong) % 22


@pytest.fixture
def canvas(toy):
    return Canvas.free(24, toy.VOCAB, block_size=8)


def test_a_draft_is_one_pass_over_all_that_was_said(toy, canvas):
    """What stands is read causally, and the window sees itself whole."""
    model, start = toy.Model(), len(toy.prompt)
    passes = Passes(model, model.prefill([toy.prompt], room=24).fork(2))
    drafter, answer, seen = Drafter.of(passes), Answer(model.spec, canvas, 2, "cpu"), []

    def choice(logits, positions, tokens=None):
        seen.append(logits[0])
        return logits.argmax(-1)

    said = answer.tokens
    for row, read, end in ((0, 0, 8), (1, 8, 16), (0, 16, 24)):
        answer.tokens[:, : read + 1] = torch.arange(read + 1) % toy.MASK
        said = drafter.propose(answer, said, choice, row, read, end)
        ids = torch.cat([torch.tensor(toy.prompt), answer.tokens[row, :end]])
        window = (torch.arange(len(ids)) >= start + read)[:, None]
        expected = model.whole(ids, torch.ones(len(ids), len(ids)).tril().bool() | window)
        torch.testing.assert_close(
            seen[-1][-(end - read - 1) :, : toy.MASK], expected[start + read : -1, : toy.MASK]
        )
        assert (said[:, 1:end] != toy.MASK).all()


@pytest.mark.parametrize("window", [None, 6])
def test_every_branch_chooses_where_a_slot_is(toy, canvas, window):
    model = toy.Model()
    branches = model.prefill([toy.prompt], room=24).fork(3)
    driver = Speculative(Placed(), window=window)
    decoded = driver.decode(model, branches, canvas, continued=False, debug=True)
    places = len(toy.prompt) + torch.arange(24)
    assert torch.equal(decoded.tokens, (places + 7 * torch.arange(3)[:, None]) % 22)
    assert decoded.accepted == decoded.drafted > 0
    drafts, width = (3, 8) if window is None else (4, 6)
    assert decoded.forwards["draft"] == drafts
    # A draft but the first one reads the window before for good.
    assert decoded.tokens_fed == width * (3 * drafts - 1)


def test_what_a_branch_said_itself_is_not_drafted_again(toy, canvas):
    """Drafts are wrong in two branches, what they say themselves is right from then on."""
    model = toy.Model()
    branches = model.prefill([toy.prompt], room=24).fork(3)
    driver = Speculative(Placed(), draft=Placed(spoils=(1, 2)))
    decoded = driver.decode(model, branches, canvas, continued=False, debug=True)
    assert decoded.forwards["draft"] == 3
    assert decoded.forwards["verify"] == 6, "two a block, of the rows that are behind"


@pytest.mark.parametrize("trunk", [False, True])
def test_rows_that_read_on_draft_for_themselves(toy, canvas, trunk):
    """One that branched where they did knows nothing of what they have read since."""
    model = toy.Model()
    context = model.prefill([toy.prompt], room=48)
    branches, driver = context.fork(2), Speculative(Placed())
    driver.decode(model, context if trunk else branches, canvas)
    model.calls.clear()
    decoded = driver.decode(model, branches, canvas, continued=False, debug=True)
    assert decoded.accepted == decoded.drafted > 0


DRAFT, VERIFY, KEEP = "draft", "verify", "keep"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (8, [(DRAFT, 8, 8), (VERIFY, 8, 8), (VERIFY, 16, 7), (KEEP, 0, 16)]),
        (16, [(DRAFT, 8, 8), (VERIFY, 8, 8), (DRAFT, 8, 7), (VERIFY, 8, 7), (VERIFY, 8, 6),
              (DRAFT, 0, 8), (VERIFY, 0, 8), (VERIFY, 0, 7), (KEEP, 0, 8)]),
    ],
)  # fmt: skip
def test_what_each_row_reads(toy, canvas, monkeypatch, given, expected):
    """The second row takes two cycles behind a draft, and is drafted again where the first one is.
    What is given at the end of the first is read with what the second verifies, and then nothing
    is read of it any more."""
    canvas.given[given:] = True
    model = toy.Model()
    context, read = model.prefill([toy.prompt] * 2, room=24), []
    forward = Passes.forward

    def watched(self, phase, ids, positions, mask, kv):
        read.append((phase, *(positions >= 0).sum(1).tolist()))
        return forward(self, phase, ids, positions, mask, kv)

    driver = Speculative(Placed(), draft=Placed(spoils=(1,)))
    monkeypatch.setattr(Passes, "forward", watched)
    driver.decode(model, context, canvas, debug=True)
    assert read == expected
    assert context.visible.sum(1).tolist() == [len(toy.prompt) + 24] * 2
