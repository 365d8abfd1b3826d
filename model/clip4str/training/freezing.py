"""Which CLIP weights stay as pre-trained while CLIP4STR trains (the published recipe's rules).

The embeddings and lower blocks of a tower carry what CLIP learnt from far more data than word crops offer;
the published recipe keeps them, of the text tower by default, and trains what lies above and both decoders.
"""

from __future__ import annotations

import re

from clip4str.model import CLIP4STR

_WHOLE_TOWER = 12  # from this many layers on, nothing of the tower is trained, however many it has
_VISION = "clip_model.visual."
_TEXT = "clip_model."
_VISION_EMBEDDINGS = ("class_embedding", "positional_embedding")
_TEXT_EMBEDDINGS = ("token_embedding.weight", "positional_embedding", "logit_scale")


def freeze(model: CLIP4STR, image_layers: int, text_layers: int) -> None:
    """Set `requires_grad` of every parameter: false for a tower's embeddings and its first so many blocks.

    -1 trains the whole tower, 0 freezes the embeddings alone, 12 or more freezes the whole tower. Raises
    ValueError below -1.
    """
    for name, layers in (("image_layers", image_layers), ("text_layers", text_layers)):
        if layers < -1:
            raise ValueError(f"{name} is {layers}: expected -1 (train the whole tower) or a number of layers")
    for name, parameter in model.named_parameters():
        if name.startswith(_VISION):
            frozen = _is_frozen(name.removeprefix(_VISION), image_layers, _VISION_EMBEDDINGS)
        elif name.startswith(_TEXT):
            frozen = _is_frozen(name.removeprefix(_TEXT), text_layers, _TEXT_EMBEDDINGS)
        else:
            frozen = False
        parameter.requires_grad_(not frozen)


def _is_frozen(name: str, layers: int, embeddings: tuple[str, ...]) -> bool:
    """Whether a parameter of a tower, by its name there, is among what `layers` freezes."""
    if layers == -1 or layers >= _WHOLE_TOWER:
        return layers != -1
    block = re.match(r"transformer\.resblocks\.(\d+)\.", name)
    return name in embeddings or (block is not None and int(block[1]) < layers)
