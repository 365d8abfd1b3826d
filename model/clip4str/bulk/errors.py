"""What can be wrong: with a job as a whole, or with one crop, which then has its error in its row."""

from typing import NamedTuple

from clip4str import untrusted

INVALID_BOX, UNREADABLE = "invalid_box", "unreadable_file"
CODES = (*untrusted.CODES, INVALID_BOX, UNREADABLE)
"""The codes of crops: those of images, a box that holds no pixel of its image, a file that is not there."""


class BulkError(Exception):
    """A job that cannot be done as it was asked for; the message is one line that says what to mend."""


class CropError(NamedTuple):
    """Why a crop was not read: one of CODES, and a line for people."""

    code: str
    detail: str
