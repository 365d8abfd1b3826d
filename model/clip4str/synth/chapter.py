"""A chapter of the stream: some thousand crops that share a set of masks, each drawn when first needed."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clip4str.synth.fonts import FontFace, FontLibrary
from clip4str.synth.kinds import KIND_SHARES, Kind
from clip4str.synth.lexicon import Lexicon
from clip4str.synth.render import MASK_SIZE, render_word

# Chunks drawn together and cut by label length; more of them give chunks of more even lengths.
_WINDOW = 8


@dataclass(frozen=True, slots=True)
class Words:
    """masks: uint8 [N, 40, 160]; aspects: float [N], width / height; kinds: int64 [N]; labels: N strings."""

    masks: Tensor
    aspects: Tensor
    kinds: Tensor
    labels: list[str]


@dataclass(frozen=True, slots=True)
class _Plan:
    label: str
    kind: Kind
    face: FontFace


class Chapter:
    """`crops` crops of crops/reuse words, cut into chunks, by label length if wanted; a function of `key` alone.

    crops must be a multiple of reuse and of chunk. Labels, faces and places are drawn at once; a mask is rendered
    when a chunk first needs it, from a generator of its own, so that any chunk can be read without the others.
    """

    def __init__(
        self,
        key: np.random.SeedSequence,
        fonts: FontLibrary,
        crops: int,
        reuse: int,
        chunk: int,
        max_length: int,
        like_lengths: bool,
    ) -> None:
        plan_key, self._render_key = key.spawn(2)
        rng = np.random.default_rng(plan_key)
        lexicon, count = Lexicon(rng), crops // reuse
        kinds = rng.choice(len(Kind), count, p=KIND_SHARES)
        self._plans = [_plan(Kind(int(kind)), lexicon, fonts, max_length, rng) for kind in kinds]
        self._places = self._arrange(reuse, chunk, like_lengths, rng)
        self._fonts = fonts
        self._masks = torch.zeros(count, *MASK_SIZE, dtype=torch.uint8)
        self._aspects = torch.zeros(count)  # 0: not drawn yet

    def __len__(self) -> int:
        """The number of chunks."""
        return len(self._places)

    def words(self, chunk: int) -> Words:
        """The words of one chunk."""
        places = self._places[chunk]
        for place in places:
            if not self._aspects[place]:
                self._render(int(place))
        index = torch.from_numpy(places)
        plans = [self._plans[place] for place in places]
        kinds = torch.tensor([int(plan.kind) for plan in plans])
        return Words(self._masks[index], self._aspects[index], kinds, [plan.label for plan in plans])

    def _render(self, place: int) -> None:
        plan = self._plans[place]
        key = np.random.SeedSequence(self._render_key.entropy, spawn_key=(*self._render_key.spawn_key, place))
        mask = render_word(plan.label, plan.kind, self._fonts, plan.face, np.random.default_rng(key))
        self._masks[place] = torch.from_numpy(mask.coverage)
        self._aspects[place] = mask.aspect

    def _arrange(
        self, reuse: int, chunk: int, like_lengths: bool, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Words of every chunk: each word once in every 1/reuse of the chapter."""
        lengths = np.array([len(plan.label) for plan in self._plans])
        order = np.concatenate([rng.permutation(len(lengths)) for _ in range(reuse)])
        chunks: list[np.ndarray] = []
        for start in range(0, len(order), _WINDOW * chunk):
            window = order[start : start + _WINDOW * chunk]
            if like_lengths:
                window = window[np.argsort(lengths[window] + rng.random(len(window)))]
            cut = np.split(window, len(window) // chunk)
            chunks += [cut[i] for i in rng.permutation(len(cut))]
        return chunks


def _plan(
    kind: Kind, lexicon: Lexicon, fonts: FontLibrary, max_length: int, rng: np.random.Generator
) -> _Plan:
    """A label of the kind and a face that can draw it."""
    while True:
        label = lexicon.draw(kind, max_length)
        face = fonts.choose(label, kind, rng)
        if face is not None:
            return _Plan(label, kind, face)
