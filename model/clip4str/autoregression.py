"""Reading from left to right: one character a step, or a whole draft at once.

Both give the same greedy reading. Step by step is what one does with nothing to go on. When another branch has
read the word already, its reading is a draft: one pass predicts all characters as if the draft were right, and
up to the first difference it was (speculative decoding; Leviathan et al., ICML 2023, with a greedy target).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip4str.attention import KeyValue
from clip4str.charset import BOS, EOS
from clip4str.model import Decoder
from clip4str.stages import Stage, unobserved


def _directly(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _as_many(count: int, _: int) -> int:
    return count


@dataclass(frozen=True, slots=True)
class Execution:
    """How decoding drives its device.

    `run` calls a function of tensors; on a GPU it replays a captured graph. `check_every`: steps between two looks
    at whether every row has ended, for which the host must wait. Three say to how many something is padded, so that
    what is computed has few shapes: `positions` that many positions of the visual reading, of a limit; `caption_rows`
    that many different captions, of a batch of rows; `reread_rows` that many rows which a draft misled, of a batch
    of rows. `encoded_at_once`: images in one pass of the image encoder, None for all.
    `tokens_at_once`: decoder tokens up to which a pass over a draft takes no longer than the steps it saves. `stage`
    is entered with the name of each part of decoding, of those in `STAGES`.
    """

    run: Callable[..., Any] = _directly
    check_every: int = 1
    positions: Callable[[int, int], int] = _as_many
    caption_rows: Callable[[int, int], int] = _as_many
    reread_rows: Callable[[int, int], int] = _as_many
    encoded_at_once: int | None = None
    tokens_at_once: int = 256
    stage: Stage = unobserved


EAGER = Execution()


def autoregress(
    decoder: Decoder,
    memory: KeyValue,
    limit: int,
    allowed: Tensor | None,
    *,
    stop_at_eos: bool,
    known: Tensor | None = None,
    padding: Tensor | None = None,
    execution: Execution = EAGER,
) -> Tensor:
    """Greedy decoding, one character a step, each from those before it. Returns float32 logits [N, T, 95].

    T is `limit`, or with `stop_at_eos` enough steps for every row to emit EOS, but not for those that `padding`,
    bool [N], excepts. A row that ended goes on decoding what no one reads. When the first P class ids are `known`,
    int64 [N, P], decoding begins after them, and T counts from there.
    """
    batch, device = memory.key.shape[0], memory.key.device
    ids = torch.full((batch, 1), BOS, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device) if padding is None else padding
    content, start = None, 0
    if known is not None:
        content = decoder.project_content(torch.cat([ids, known[:, :-1]], dim=1))
        ids, start = known[:, -1:], known.shape[1]
    logits = []
    while start < limit:
        stop = min(start + execution.check_every, limit)
        some, content, ids, ended = execution.run(
            _step, decoder, memory, content, ids, ended, allowed, start, stop
        )
        logits.append(some)
        start = stop
        if stop_at_eos and start < limit and bool(ended.all()):
            break
    return torch.cat(logits, dim=1)


def _step(
    decoder: Decoder,
    memory: KeyValue,
    content: KeyValue | None,
    ids: Tensor,
    ended: Tensor,
    allowed: Tensor | None,
    start: int,
    stop: int,
) -> tuple[Tensor, KeyValue | None, Tensor, Tensor]:
    """Steps start to stop. `ids` [N, 1] were read last, `content` is of those before; both are returned anew."""
    logits = []
    for step in range(start, stop):
        last = decoder.project_content(ids, start=step)
        content = last if content is None else content.append(last)
        at_step = constrain(decoder(content, memory, slice(step, step + 1)), allowed)  # [N, 1, 95]
        logits.append(at_step)
        ids = at_step.argmax(-1)  # [N, 1]
        ended = ended | (ids[:, 0] == EOS)
    return torch.cat(logits, dim=1), content, ids, ended


def speculate(
    decoder: Decoder,
    memory: KeyValue,
    draft: Tensor,
    steps: Tensor,
    allowed: Tensor | None,
    execution: Execution = EAGER,
) -> Tensor:
    """As `autoregress`, from a draft of the reading, class ids int64 [N, T]. Returns float32 logits [N, T, 95].

    Rows that the draft misleads are read along what was read last: every pass gets at least one more character
    right, most get all. Only where such a pass costs more than a step they are read on step by step.
    Row n is decoded for its first steps[n] positions; what stands behind them is of no meaning.
    """
    logits: Tensor = execution.run(_read_along, decoder, memory, draft, allowed).clone()  # not a graph's own
    reading = logits.argmax(-1)
    right = _agreement(reading, draft)  # and the character after these: what it was read from is right
    rows = (right < steps - 1).nonzero()[:, 0]
    while len(rows):
        if len(rows) * draft.shape[1] > execution.tokens_at_once:
            return _resume(decoder, memory, logits, rows, int(right[rows].min()) + 1, allowed)
        count = execution.reread_rows(len(rows), len(draft))
        padded = torch.cat([rows, rows[-1:].expand(count - len(rows))])
        some = None if allowed is None else allowed[padded]
        again = _read_along(decoder, memory.select(padded), reading[padded], some)[: len(rows)]
        read_again = again.argmax(-1)
        right = right.index_copy(0, rows, _agreement(read_again, reading[rows]))
        logits = logits.index_copy(0, rows, again)
        reading = reading.index_copy(0, rows, read_again)
        rows = rows[right[rows] < steps[rows] - 1]
    return logits


def _resume(
    decoder: Decoder, memory: KeyValue, logits: Tensor, rows: Tensor, known: int, allowed: Tensor | None
) -> Tensor:
    """Read these rows on step by step, after the `known` characters that `logits` [N, T, 95] have right in all."""
    reading = logits[rows, :known].argmax(-1)
    some = None if allowed is None else allowed[rows]
    limit = logits.shape[1]
    rest = autoregress(decoder, memory.select(rows), limit, some, stop_at_eos=False, known=reading)
    return logits.index_copy(0, rows, torch.cat([logits[rows, :known], rest], dim=1))


def _read_along(decoder: Decoder, memory: KeyValue, draft: Tensor, allowed: Tensor | None) -> Tensor:
    """Logits [N, T, 95] of every position, each from the draft's characters before it."""
    length = draft.shape[1]
    context = torch.cat([draft.new_full((len(draft), 1), BOS), draft[:, :-1]], dim=1)
    position = torch.arange(length, device=draft.device)
    causal = position <= position[:, None]  # [Q, C]: context column k holds character k - 1
    content = decoder.project_content(context)
    return constrain(decoder(content, memory, slice(0, length), causal[None, None]), allowed)


def _agreement(reading: Tensor, draft: Tensor) -> Tensor:
    """How many leading characters of each row agree. int64 [N]."""
    return (reading == draft).int().cumprod(1).sum(1)


def constrain(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Logits [N, Q, 95] in float32, those of classes that `allowed`, bool [N, 95], forbids at -inf."""
    logits = logits.float()
    return logits if allowed is None else logits.masked_fill(~allowed[:, None, :], float("-inf"))


def first_eos(ids: Tensor) -> Tensor:
    """Index of the first EOS of each row of ids [N, T], T where there is none. int64 [N]."""
    return (ids != EOS).int().cumprod(1).sum(1)
