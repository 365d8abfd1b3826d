"""Text, tokens, confidences and pixels: what the published implementation makes of the same input.

The label filter is tested in `test_datasets.py`, the metrics of a whole set in `test_evaluation.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip4str.charset import (
    ALPHANUMERIC_LOWER,
    BOS,
    CHARACTERS,
    CLASSES,
    EOS,
    PAD,
    TOKENS,
    CharsetError,
    adapt,
    character_ids,
    decode,
    decode_caption,
)
from clip4str.config import CLIP_MEAN, CLIP_STD, HALF, VARIANTS, ModelConfig
from clip4str.evaluation import score
from clip4str.image import prepare
from clip4str.reading import BranchReading, Reading
from clip4str.tokens import encode
from clip4str.towers import tokenize
from tests.model.golden import (
    PROBABILITIES,
    assert_close,
    branch_reading,
    build,
    fixtures,
    in_folder,
    read_fixture,
    read_json,
)

each_text = pytest.mark.parametrize("path", fixtures("text.json"), ids=in_folder)


def probabilities(reading: BranchReading, truncated: bool) -> list[float]:
    """Of the characters, and of the end of sequence where there is one."""
    of_characters = [character.confidence for character in reading.characters]
    return of_characters if truncated else [*of_characters, reading.eos_confidence]


@each_text
def test_tokens(path: Path) -> None:
    golden = read_json(path)
    special = golden["special_ids"]
    assert golden["charset94"] == CHARACTERS
    assert (special["eos"], special["bos"], special["pad"], special["n_tokens"]) == (EOS, BOS, PAD, TOKENS)
    assert [golden["itos"][index] for index in character_ids(CHARACTERS)] == list(CHARACTERS)


@each_text
def test_encode(path: Path) -> None:
    golden = read_json(path)["encode"]
    assert encode(golden["labels"]).tolist() == golden["ids"]


@each_text
def test_encode_refuses_what_the_published_code_refuses(path: Path) -> None:
    refused = [label for label, _ in read_json(path)["encode_errors"]]
    assert refused
    for label in refused:
        with pytest.raises(CharsetError, match="is not one of the 94 known characters"):
            encode([label])


@each_text
def test_adapt(path: Path) -> None:
    golden = read_json(path)["charset_adapter"]
    adapted = {
        name: [adapt(word, charset) for word in golden["words"]]
        for name, charset in golden["charsets"].items()
    }
    assert adapted == golden["result"]


@each_text
def test_decode(path: Path) -> None:
    golden = read_json(path)["decode"]
    assert [decode(ids) for ids in golden["argmax_ids"]] == golden["text"]


@each_text
def test_decode_caption(path: Path) -> None:
    golden = read_json(path)["decode"]
    captions = [decode_caption(ids) for ids in golden["argmax_ids"]]
    assert captions == golden["fast_text"]
    assert [adapt(caption, ALPHANUMERIC_LOWER) for caption in captions] == golden["fast_text_adapted36"]


@each_text
def test_reading_of_probabilities(path: Path) -> None:
    golden = read_json(path)["decode"]
    arrays, _ = read_fixture(path.with_name("text_decode.npz"))
    for row, distributions in enumerate(torch.from_numpy(arrays["probs"])):
        reading, truncated = branch_reading(distributions.log())  # softmax of the logarithm gives them back
        assert reading.text == golden["text"][row]
        assert truncated == (EOS not in golden["argmax_ids"][row])
        assert_close(probabilities(reading, truncated), golden["probs"][row], PROBABILITIES, f"row {row}")
        assert reading.confidence == pytest.approx(golden["confidence"][row], rel=PROBABILITIES)


@each_text
def test_metrics_of_each_word_from_its_logits(path: Path) -> None:
    """The fixture's logits are 0, and 4 + position / 10 + row / 100 for the text, EOS, then the id 7."""
    golden = read_json(path)["metrics"]
    for row, ((text, label), expected) in enumerate(zip(golden["pairs"], golden["per_sample"], strict=True)):
        ids = [*character_ids(text), EOS]
        ids += [7] * (26 - len(ids))
        logits = torch.zeros(26, CLASSES)
        logits[torch.arange(26), torch.tensor(ids)] = 4 + 0.1 * torch.arange(26) + 0.01 * row
        branch, truncated = branch_reading(logits)
        assert branch.text == text
        report = score([Reading(branch, branch, truncated)], [label], seconds=1.0)
        assert report.accuracy_36.final == 100 * expected["correct"]
        assert report.one_minus_ned_36.final == pytest.approx(100 * (1 - expected["ned"]))
        assert report.mean_confidence == pytest.approx(expected["confidence"], rel=PROBABILITIES)
        assert len(adapt(text, golden["charset_test"])) == expected["label_length"]


def with_context(length: int) -> ModelConfig:
    config = VARIANTS["base16"]
    return dataclasses.replace(config, text=dataclasses.replace(config.text, context_length=length))


@each_text
def test_caption_tokens(path: Path) -> None:
    golden = read_json(path)["clip_tokenize"]
    config = with_context(golden["context_length"])
    assert config == VARIANTS["base16"]
    tokens = tokenize(golden["texts"], config).tolist()
    assert dict(zip(golden["texts"], tokens, strict=True)) == dict(
        zip(golden["texts"], golden["ids"], strict=True)
    )


@each_text
def test_caption_tokens_that_are_not_cut(path: Path) -> None:
    golden = read_json(path)
    texts, lengths = golden["clip_tokenize"]["texts"], golden["clip_tokenize"]["n_untruncated"]
    rows = tokenize(texts, with_context(77)).tolist()
    for text, length, row, expected in zip(
        texts, lengths, rows, golden["clip_tokenize_77_nonzero"], strict=True
    ):
        assert (text, row) == (text, expected + [0] * (77 - length))


def test_special_tokens_have_clip_s_spelling_alone() -> None:
    """open_clip's own spelling of them is nothing special in a caption; neither is CLIP's inside other signs."""
    start, end = 49406, 49407
    captions = ["<start_of_text>", "<end_of_text>", "!<|endoftext|>"]
    for row in tokenize(captions, VARIANTS["base16"]).tolist():
        assert (row.count(start), row.count(end)) == (1, 1)


@pytest.mark.parametrize("path", fixtures("transform.npz"), ids=in_folder)
@pytest.mark.parametrize(
    ("name", "mean", "std"), [("half", HALF, HALF), ("openai", CLIP_MEAN, CLIP_STD)], ids=["half", "openai"]
)
def test_pixels(
    path: Path, name: str, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    arrays, _ = read_fixture(path)
    rule = read_json(path.with_name("text.json"))["transform"]
    model = build("tiny")
    model.config = dataclasses.replace(model.config, mean=mean, std=std)
    for height, width in rule["sizes"]:
        size = f"{height}x{width}"
        small = arrays[f"{size}_input_small"]
        tall, wide = -(-height // small.shape[0]), -(-width // small.shape[1])
        pixels = small.repeat(tall, axis=0).repeat(wide, axis=1)[:height, :width]
        prepared = prepare(Image.fromarray(pixels), tuple(rule["img_size"]))
        normalised = model.normalize(torch.from_numpy(prepared).unsqueeze(0))[0]
        assert normalised.shape == (3, 224, 224)
        assert_close(normalised[:, 3::20, 5::20], arrays[f"{size}_{name}_slice"], 1e-6, size)
        statistics = [normalised.mean(), normalised.std(correction=0), normalised.min(), normalised.max()]
        assert_close(np.array(statistics), arrays[f"{size}_{name}_stats"], 1e-5, f"{size}: statistics")
