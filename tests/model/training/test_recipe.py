"""Recipes: what they accept, and one clear line for what they do not."""

from pathlib import Path

import pytest

from clip4str import training
from clip4str.config import VARIANTS
from clip4str.training.objective import ObjectiveOptions
from clip4str.training.recipe import Optimization, RecipeError, read_recipe


def test_fields_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("output: run\nbatch_size: 8\nvalidation: [a, b]\n")
    recipe = read_recipe(path)
    assert recipe.output == Path("run")
    assert recipe.batch_size == 8
    assert recipe.validation == (Path("a"), Path("b"))
    assert recipe.objective.permutations == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size: 8", "output: Field required"),
        ("output: run\nbatchsize: 8", "batchsize: Extra inputs"),
        ("output: run\nbatch_size: many", "batch_size: Input should be a valid integer"),
        ("output: run\nvariant: giant", "variant: Input should be 'tiny', 'base32'"),
        ("- a list", "file: Input should be a valid dictionary"),
        ("output: [", "not YAML"),
    ],
)
def test_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"output: \xff\xfe")
    with pytest.raises(RecipeError, match="not YAML"):
        read_recipe(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


RECIPES = sorted((Path(training.__file__).parent / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert read_recipe(path).samples > 0


def test_recipes_are_shipped() -> None:
    assert {"finetune", "published-base16", "tiny-1", "tiny-2"} <= {path.stem for path in RECIPES}


def test_published_recipe_has_the_published_values() -> None:
    """Those that the paper and its code name: everything else of the recipe is where the data lies."""
    recipe = read_recipe(Path(training.__file__).parent / "recipes" / "published-base16.yaml")
    assert recipe.optimization == Optimization()
    assert recipe.objective == ObjectiveOptions()
    assert recipe.freeze_text_layers is None
    assert VARIANTS[recipe.variant].freeze_text_layers == 6
    assert recipe.step_crops(8) == 1024


def test_batch_statistics_are_not_trained_on_words_of_like_length(tmp_path: Path) -> None:
    """A batch's statistics would tell how long its words are, which those of reading do not."""
    path = tmp_path / "recipe.yaml"
    path.write_text("output: run\ninit: random\nfreeze_statistics: false\n")
    with pytest.raises(RecipeError, match="like_lengths"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("init: random", "init: random needs freeze_statistics: false"),
        ("variant: base16", "variant: leave it out, the model of init: default has its own"),
        ("clip: ViT-B-16.pt", "clip: leave it out"),
        ("init: random\nvariant: base16\nnew_decoders: true", "new_decoders: leave it out"),
        ("adapter: {kind: linear}\nfreeze_text_layers: 1", "freeze_text_layers: leave it out, an adapter"),
        ("adapter: {kind: linear}\nobjective: {detach_image: false}", "objective.detach_image: leave it out"),
        ("adapter: {kind: linear}\noptimization: {rate_batch: 64}", "optimization.rate_batch: leave it out"),
        ("objective: {cross_modal: false, cross_image_dropout: 0.1}", "objective.cross_image_dropout: leave"),
        ("samples: 10\naverage: {kind: swa, start: 10}", "average.start: the run ends before it"),
        ("objective: {permutations: 5}", "permutations: Input should be a multiple of 2"),
        ("optimization: {learning_rate: .inf}", "learning_rate: Input should be a finite number"),
    ],
)
def test_what_would_do_nothing_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output: run\n{text}\n")
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)
