"""Recipes: what they accept, and one clear line for what they do not."""

from pathlib import Path

import pytest

from clip4str import training
from clip4str.training.recipe import RecipeError, read_recipe


def test_fields_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("output: run\nbatch_size: 8\nvalidation: [a, b]\n")
    recipe = read_recipe(path)
    assert recipe.output == Path("run")
    assert recipe.batch_size == 8
    assert recipe.validation == (Path("a"), Path("b"))
    assert recipe.permutations == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size: 8", "output: Field required"),
        ("output: run\nbatchsize: 8", "batchsize: Extra inputs"),
        ("output: run\nbatch_size: many", "batch_size: Input should be a valid integer"),
        ("output: run\nvariant: giant", "variant: Input should be 'tiny'"),
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


RECIPES = sorted((Path(training.__file__).parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert read_recipe(path).variant == "tiny"


def test_recipes_are_shipped() -> None:
    assert [path.name for path in RECIPES] == ["tiny-1.yaml", "tiny-2.yaml", "tiny-3.yaml", "tiny-4.yaml"]
