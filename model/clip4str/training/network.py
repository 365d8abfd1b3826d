"""The model a recipe trains, and its losses as one forward pass: what distributed training wraps."""

from __future__ import annotations

from torch import Tensor, nn

from clip4str import checkpoint
from clip4str.config import VARIANTS
from clip4str.model import CLIP4STR, init_decoder
from clip4str.training.adapters import AdapterModel, init_adapter_model
from clip4str.training.auxiliary import ColumnClassifier
from clip4str.training.freezing import freeze
from clip4str.training.objective import permute, permuted_losses, visual_logits
from clip4str.training.recipe import Recipe, RecipeError

Model = CLIP4STR | AdapterModel
_WHOLE_TEXT_ENCODER = 12  # layers, see `freezing.freeze`


class Network(nn.Module):
    """The model and, where the recipe wants one, the column classifier that helps its image encoder.

    Frozen parts stay frozen: batch normalisation as the recipe says, an adapter model's encoder always.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = initial_model(recipe)
        wants_columns = recipe.encoder_only > 0 or recipe.column_loss_weight > 0
        columns, longest = self.model.config.vision.grid[1], self.model.config.max_length
        if wants_columns and columns < longest:
            raise RecipeError(
                f"encoder_only, column_loss_weight: this image encoder has {columns} columns, "
                f"too few to spell words of {longest} characters"
            )
        self.columns = ColumnClassifier(self.model.config) if wants_columns else None

    def train(self, mode: bool = True) -> Network:
        """As of any module, but frozen statistics stay as they will be when reading."""
        super().train(mode)
        if self.recipe.freeze_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor, targets: Tensor, orders: Tensor | None) -> dict[str, Tensor]:
        """Mean losses by name, scalars: "reading" is what the decoders learn from, "columns" the encoder's help.

        `images` uint8 [N, 3, H, W]; `targets` int64 [N, n + 2] as of `charset.encode`; `orders` [K, n + 2] as of
        `objective.permutations`, or None while the column classifier alone teaches the encoder.
        """
        losses = {}
        features = self.model.encode_image(self.model.normalize(images))
        if self.columns is not None:
            losses["columns"] = self.columns.loss(features, targets)
        if orders is None:
            return losses
        if isinstance(self.model, AdapterModel):
            batch = permute(targets, orders)
            losses["reading"] = batch.cross_entropy(visual_logits(self.model.decoder, features, batch))
            losses["visual"] = losses["reading"]
            return losses
        branches = permuted_losses(self.model, features, targets, orders, self.recipe.objective)
        losses |= {"reading": branches.total, "visual": branches.visual}
        if branches.cross_modal is not None:
            losses["cross_modal"] = branches.cross_modal
        return losses


def initial_model(recipe: Recipe) -> Model:
    """The model before the first step. Raises CheckpointError, and RecipeError for an adapter that does not fit."""
    if recipe.init == "random":
        model = CLIP4STR(VARIANTS[recipe.variant])
        if recipe.clip is not None:
            checkpoint.load_clip_weights(model, recipe.clip)
    else:
        model = checkpoint.build(checkpoint.load(recipe.init))
    if recipe.init == "random" or recipe.new_decoders:
        init_decoder(model.visual_decoder)
        init_decoder(model.cross_decoder)
    if recipe.cross_from_visual:
        model.cross_decoder.load_state_dict(model.visual_decoder.state_dict())
    if recipe.adapter is not None:
        try:
            adapted = AdapterModel(model.config, recipe.adapter)
        except ValueError as error:
            raise RecipeError(f"adapter: {error}") from None
        adapted.clip_model.load_state_dict(model.clip_model.state_dict())
        init_adapter_model(adapted)
        return adapted
    image, text = recipe.freeze_image_layers, recipe.freeze_text_layers
    if not recipe.objective.cross_modal:
        text = _WHOLE_TEXT_ENCODER
    freeze(
        model,
        model.config.freeze_image_layers if image is None else image,
        model.config.freeze_text_layers if text is None else text,
    )
    model.visual_decoder.requires_grad_(not recipe.freeze_visual_decoder)
    model.cross_decoder.requires_grad_(recipe.objective.cross_modal)
    return model
