"""What the commands' arguments have in common."""

import argparse

DTYPES = ("fp32", "bf16", "fp16")


def add_model(command: argparse.ArgumentParser) -> None:
    """--model."""
    command.add_argument(
        "--model", default="default", help="a model's name, file or folder (default: %(default)s)"
    )


def add_device(command: argparse.ArgumentParser) -> None:
    """--device."""
    command.add_argument("--device", help="cpu, cuda or cuda:N (default: the best there is)")


def add_precision(command: argparse.ArgumentParser) -> None:
    """--precision."""
    command.add_argument(
        "--precision",
        choices=("auto", *DTYPES),
        default="auto",
        help="number format to compute in (default: the fastest that the device has)",
    )


def add_reading(command: argparse.ArgumentParser) -> None:
    """--top-k and --charset."""
    command.add_argument("--top-k", type=int, choices=range(6), default=0, help="alternatives per character")
    command.add_argument(
        "--charset", help="full, alphanumeric, digits, lowercase, uppercase, or the characters"
    )


def positive(text: str) -> int:
    """A whole number above 0."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
