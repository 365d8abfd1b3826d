"""What is asked of a crop: what options refuse."""

from typing import Any

import pytest

from clip4str import CharsetError, ReadOptions


@pytest.mark.parametrize("top_k", [-1, 6, 1.5, True])
def test_top_k_out_of_range(top_k: Any) -> None:
    with pytest.raises(ValueError, match=r"top_k is .* between 0 and 5"):
        ReadOptions(top_k=top_k)


@pytest.mark.parametrize(("charset", "message"), [("", "empty"), ("abcé", "'é'"), ("a b", "' '")])
def test_bad_charset(charset: str, message: str) -> None:
    with pytest.raises(CharsetError, match=message):
        ReadOptions(charset=charset)
