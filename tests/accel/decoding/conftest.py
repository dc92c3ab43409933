"""A tiny language model of any regime, what it says with nothing kept, and canvases to fill."""

from types import SimpleNamespace

import pytest
import torch

from fastloop.accel.decoding import Canvas, Context, KVCache, ModelSpec, Regime
from fastloop.accel.decoding.layered import Reading

VOCAB, MASK = 23, 22


class Tiny:
    """Rotary positions, two key heads for four query heads, in float64; layers are called singly.

    Tokens from 18 on, the mask aside, count as parts of pictures.
    """

    heads, kv_heads, width, scale = 4, 2, 6, 1.0

    def __init__(self, regime=Regime.CAUSAL_CONTEXT, seed=0, stop_id=None, logit_shift=1, layers=3):
        self.spec = ModelSpec(
            regime, VOCAB, MASK, stop_id=stop_id, logit_shift=logit_shift, block_size=4, native=True
        )
        self.layers = layers
        random = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        dim, key = self.heads * self.width, self.kv_heads * self.width
        self.table, self.out = normal(VOCAB, dim), normal(dim, VOCAB) / 3
        self.parts = [
            [normal(dim, dim + 2 * key) / 3, normal(dim, dim) / 3, normal(dim, dim) / 3]
            for _ in range(self.layers)
        ]
        self.calls = []

    def embed(self, ids):
        return self.table[ids]

    def rotary(self, positions):
        half = self.width // 2
        angle = positions[:, None, :, None] * 0.3 ** torch.arange(half, dtype=torch.float64)
        return angle.cos(), angle.sin()

    def project(self, layer, hidden, rotary):
        rows, new = hidden.shape[:2]
        dim, key = self.heads * self.width, self.kv_heads * self.width
        normed = hidden / hidden.pow(2).mean(-1, keepdim=True).sqrt()
        q, k, v = (
            part.view(rows, new, -1, self.width).transpose(1, 2)
            for part in (normed @ self.parts[layer][0]).split([dim, key, key], -1)
        )
        return self.rotate(q, rotary), self.rotate(k, rotary), v

    def rotate(self, x, rotary):
        (a, b), (cos, sin) = x.chunk(2, -1), rotary
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def finish(self, layer, hidden, mixed):
        _, outward, ffn = self.parts[layer]
        hidden = hidden + mixed.transpose(1, 2).flatten(2) @ outward
        return hidden + torch.tanh(hidden @ ffn)

    def head(self, hidden):
        return hidden @ self.out

    def run(self, ids, positions, mask, kv):
        h, rotary = self.embed(ids), self.rotary(positions)
        for layer in range(self.layers):
            q, k, v = self.project(layer, h, rotary)
            if kv is not None:
                k, v = kv.append(layer, k, v)
            k, v = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (k, v))
            score = (q @ k.transpose(-1, -2)).masked_fill(~mask[:, None], -torch.inf)
            h = self.finish(layer, h, score.softmax(-1) @ v)
        return self.head(h)

    def forward(self, ids, *, positions, mask, kv):
        assert positions.shape == ids.shape
        assert mask.shape[1:] == (ids.shape[1], kv.length + ids.shape[1])
        assert mask.any(-1).all(), "a query that sees nothing"
        self.calls.append(ids.shape[1])
        return self.run(ids, positions, mask, kv)

    def prefill(self, prompts, *, room):
        ids = torch.stack([torch.as_tensor(prompt) for prompt in prompts])
        rows, length = ids.shape
        position = torch.full((rows,), length)
        if self.spec.regime is Regime.FULL:
            none = torch.zeros(rows, VOCAB, dtype=torch.float64)
            seen = torch.zeros(rows, 0, dtype=torch.bool)
            return Context(KVCache(self.layers, length + room), seen, position, none, prompt=ids)
        kv = KVCache(self.layers, length + room)
        logits = self.run(ids, self.places(ids), self.prompt_mask(length)[None], kv)
        return Context(kv, torch.ones(rows, length, dtype=torch.bool), position, logits[:, -1])

    def read(self, prompts):
        ids = torch.stack([torch.as_tensor(prompt) for prompt in prompts])
        rows, length = ids.shape
        return Reading(
            ids=ids, hidden=self.embed(ids), positions=self.places(ids),
            mask=self.prompt_mask(length)[None], visible=torch.ones(rows, length).bool(),
            visual=(ids >= 18) & (ids < MASK), position=torch.full((rows,), length),
        )  # fmt: skip

    def places(self, ids):
        return torch.arange(ids.shape[1]).expand(len(ids), -1)

    def prompt_mask(self, length):
        whole = torch.ones(length, length, dtype=torch.bool)
        causal = self.spec.regime in (Regime.CAUSAL, Regime.CAUSAL_CONTEXT, Regime.BLOCK_CAUSAL)
        return whole.tril() if causal else whole

    def whole(self, ids, mask):
        """Logits (S, V) of one sequence (S,), nothing kept, under a mask (S, S)."""
        return self.run(ids[None], self.places(ids[None]), mask[None], None)[0]


class Drafting:
    """A model whose draft passes are right (as `truth` (n,) has it) as often as `rate` says."""

    def __init__(self, model, rate, prompt, truth, seed=0):
        self.model, self.spec, self.rate = model, model.spec, rate
        self.prompt, self.truth = prompt, truth
        self.random = torch.Generator().manual_seed(seed)

    def prefill(self, prompts, *, room):
        return self.model.prefill(prompts, room=room)

    def forward(self, ids, *, positions, mask, kv):
        logits = self.model.forward(ids, positions=positions, mask=mask, kv=kv)
        slots = positions + 1 - self.prompt  # of which the logits speak
        # A draft is what a slot says that sees the masks behind it; causal ones are left alone.
        new = ids.shape[1]
        masked = torch.zeros_like(ids, dtype=torch.bool)
        masked[:, :-1] = ids[:, 1:] == MASK
        masked &= mask[:, :, -new:].triu(1).any(-1)
        slots = slots.clamp(max=len(self.truth) - 1)
        right = torch.nn.functional.one_hot(self.truth[slots], VOCAB).double()
        wrong = torch.nn.functional.one_hot((self.truth[slots] + 1) % MASK, VOCAB).double()
        hit = torch.rand(ids.shape, generator=self.random) < self.rate
        told = torch.where(hit[..., None], right, wrong) * 1e3
        return torch.where(masked[..., None], told, logits)


def reference(model, prompt, canvas, choose=None, row=0):
    """Token by token with nothing kept: the whole sequence is read again for every token."""
    allowed = canvas.allowed.clone()
    allowed[:, MASK] = False
    choose = choose or (lambda logits, positions: logits.argmax(-1))
    ids = torch.as_tensor(prompt)
    for slot in range(len(canvas)):
        token = canvas.tokens[slot]
        if not canvas.given[slot]:
            mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
            logits = model.whole(ids, mask)[-1].masked_fill(~allowed[canvas.kind[slot]], -torch.inf)
            token = choose(logits[None, None], torch.tensor([[len(ids)]]))[0, 0]
        ids = torch.cat([ids, token[None]])
    return ids[len(prompt) :]


def random_canvas(seed, slots=24, given=0.4, kinds=3, sections=2, largest=8):
    """Ragged blocks, given runs, a few sections, and tables of what may stand."""
    random = torch.Generator().manual_seed(seed)

    def integers(high, size):
        return torch.randint(high, (size,), generator=random)

    def steps(share):
        return (torch.rand(slots, generator=random) < share).cumsum(0)

    allowed = torch.rand(kinds, VOCAB, generator=random) < 0.6
    allowed[:, :2] = True
    allowed[0] = True
    return Canvas(
        tokens=integers(MASK, slots),
        given=torch.rand(slots, generator=random) < given,
        block=steps(2 / largest),
        section=(torch.arange(slots) * sections) // slots,
        kind=integers(kinds, slots),
        allowed=allowed,
        sections=tuple(f"section {i}" for i in range(sections)),
    )


@pytest.fixture(scope="session")
def toy():
    """The helpers of this page under one name."""
    return SimpleNamespace(
        Model=Tiny, Drafting=Drafting, reference=reference, canvas=random_canvas,
        VOCAB=VOCAB, MASK=MASK, prompt=[3, 14, 1, 5, 9, 2, 6],
    )  # fmt: skip
