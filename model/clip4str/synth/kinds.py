"""The kinds of words that are read in practice, each with its own labels, fonts, crops and flaws."""

from enum import IntEnum

import torch
from torch import Tensor


class Kind(IntEnum):
    """FORM: typed or printed pages, scanned; RECEIPT: tills' print; SIGN: all that is painted, cut or shown."""

    FORM = 0
    RECEIPT = 1
    SIGN = 2


#: How often each kind comes, in the order of Kind.
KIND_SHARES = (0.24, 0.18, 0.58)


def by_kind(kinds: Tensor, form: float, receipt: float, sign: float) -> Tensor:
    """One number for each sample, float [N], looked up by its kind (int64 [N])."""
    return torch.tensor((form, receipt, sign), device=kinds.device)[kinds]
