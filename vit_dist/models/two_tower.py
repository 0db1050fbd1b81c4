"""A model of two towers: images and texts in one space, for contrastive training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.config.fields import ModelConfig
from vit_dist.config.text_fields import TEXT_PRESETS, TextConfig
from vit_dist.errors import UserError
from vit_dist.models.build import build_model, check_outputs, drop_path_depth
from vit_dist.models.forward import at_least_float32
from vit_dist.models.pretrained import classifier
from vit_dist.models.text_transformer import TextTransformer
from vit_dist.plan.keys import Purpose, key
from vit_dist.sizing.limits import check_parameters

# (scale, bias) of the similarities at the start, and the largest scale, by loss (CLIP, SigLIP).
_START = {"clip": (1 / 0.07, None), "siglip": (10.0, -10.0)}
LARGEST_SCALE = 100.0


class TwoTower(nn.Module):
    """An image tower and a text tower whose outputs, of unit length, are compared (Radford et al., "CLIP", 2021).

    logit_scale: logarithm of what similarities are multiplied by. logit_bias: what is added to them (Zhai et al.,
    "SigLIP", 2023); None for clip. Draws of drop paths are [batch, blocks of both towers, 2], the image tower's first.
    """

    def __init__(self, image: nn.Module, text: nn.Module, loss: str) -> None:
        """image: images → [batch, embed_dim]; text: tokens [batch, its context_length] → [batch, embed_dim].

        loss: clip or siglip.
        """
        super().__init__()
        self.image = image
        self.text = text
        scale, bias = _START[loss]
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))
        self.image_drop_path_depth = drop_path_depth(image)

    def named_towers(self) -> dict[str, nn.Module]:
        """Return the towers by the name that their parameters begin with."""
        return {"image": self.image, "text": self.text}

    def never_decayed(self) -> set[str]:
        """Return the names of the parameters that are not decayed, whatever is asked for."""
        return {"logit_scale", "logit_bias"}

    def encode_image(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Return the embeddings [batch, embed_dim] of images, of unit length, in float32 at least.

        drop_path: the draws of the image tower alone.
        """
        outputs = self.image(images) if drop_path is None else self.image(images, drop_path)
        return F.normalize(at_least_float32(outputs), dim=1)

    def encode_text(self, tokens: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Return the embeddings [batch, embed_dim] of tokens int64 [batch, context_length]; see `encode_image`."""
        outputs = self.text(tokens) if drop_path is None else self.text(tokens, drop_path)
        return F.normalize(at_least_float32(outputs), dim=1)

    def forward(
        self, images: Tensor | None, tokens: Tensor | None, drop_path: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the embeddings of images and of tokens; None in place of either is not computed."""
        of_image, of_text = self._parts(drop_path)
        return (
            None if images is None else self.encode_image(images, of_image),
            None if tokens is None else self.encode_text(tokens, of_text),
        )

    def _parts(self, drop_path: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the draws of each tower; None for one that takes none."""
        if drop_path is None:
            return None, None
        depth = self.image_drop_path_depth
        image, text = (
            part if part.shape[1] and tower.training else None
            for part, tower in zip((drop_path[:, :depth], drop_path[:, depth:]), (self.image, self.text), strict=True)
        )
        return image, text

    def train(self, mode: bool = True) -> TwoTower:
        """Set the mode; a tower of which nothing is trained stays as at inference, and drops nothing."""
        super().train(mode)
        for tower in self.named_towers().values():
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    @torch.no_grad()
    def bound_scale(self) -> None:
        """Bring the scale back to 100 where a step has taken it beyond."""
        self.logit_scale.clamp_(max=math.log(LARGEST_SCALE))


def build_two_tower(
    config: ModelConfig,
    text: TextConfig,
    loss: str,
    *,
    vocabulary_size: int,
    channels: int,
    image_size: int,
    seed: int,
    sizes: Sequence[int] = (),
    trained: bool = True,
) -> TwoTower:
    """Build the model of a contrastive run on the CPU in float32; its initial weights depend on `seed` alone.

    config: of the image tower, any model whose classifier becomes the projection. loss: clip or siglip. The other
    arguments are those of `build_model`. Raises UserError.
    """
    image = build_model(
        config,
        classes=text.embed_dim,
        channels=channels,
        image_size=image_size,
        seed=seed,
        sizes=sizes,
        trained=trained,
    )
    check_image_tower(image, text.embed_dim, channels=channels, image_size=image_size)
    preset = TEXT_PRESETS[text.name]
    text = replace(
        text,
        width=text.width or preset["width"],
        depth=text.depth or preset["depth"],
        heads=text.heads or preset["heads"],
    )
    assert text.width is not None
    assert text.depth is not None
    assert text.heads is not None
    rest = vocabulary_size + text.context_length + text.embed_dim
    check_parameters((12 * text.width * text.depth + rest) * text.width, "text.width")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, Purpose.INIT_TEXT) >> 1)
        tower = TextTransformer(
            vocabulary_size=vocabulary_size,
            context_length=text.context_length,
            outputs=text.embed_dim,
            width=text.width,
            depth=text.depth,
            heads=text.heads,
            causal=text.causal,
            pool=text.pool,
            dropout=text.dropout,
            drop_path=text.drop_path,
        )
        _restart_projection(image)
    return TwoTower(image, tower, loss)


def check_image_tower(model: nn.Module, embed_dim: int, *, channels: int, image_size: int) -> None:
    """Check that an image tower gives embeddings. Raises UserError."""
    try:
        check_outputs(model, classes=embed_dim, channels=channels, image_size=image_size, field="model.name")
    except UserError as error:
        hint = f"an image tower ends with a projection, and is built with classes={embed_dim}, which is text.embed_dim"
        raise UserError(f"{str(error).partition(', and must')[0]}: {hint}") from None


def _restart_projection(image: nn.Module) -> None:
    """Start the projection anew, as CLIP does: a classifier's may be 0, and 0 has no direction."""
    for name in classifier(image):
        layer = image.get_submodule(name)
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
