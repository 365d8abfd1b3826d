"""The library's public names are a promise: a change here is a change for every user."""

import clip4str


def test_public_names() -> None:
    assert sorted(clip4str.__all__) == [
        "Alternative",
        "BranchReading",
        "Character",
        "CharsetError",
        "CheckpointError",
        "ModelInfo",
        "ReadOptions",
        "Reading",
        "Recognizer",
    ]
    assert all(hasattr(clip4str, name) for name in clip4str.__all__)
