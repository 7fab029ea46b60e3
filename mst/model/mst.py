"""MST, the whole network: image, clicks and previous mask to logits."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mst.clicks import click_maps
from mst.config import ModelConfig
from mst.model.attention import NORM_EPS, Block
from mst.model.click_context import ClickContext
from mst.model.detail import Detail
from mst.model.fusion import FusionStage, StageTrace
from mst.model.head import MLPHead
from mst.model.neck import SimpleFPN
from mst.model.patch_embed import COORD_CHANNELS, IMAGE_CHANNELS, PatchEmbed, PositionEmbed, Scale

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Output(NamedTuple):
    """What a forward pass returns."""

    logits: Tensor
    """(B, 1, H, W), or a quarter of the size; sigmoid gives the probability of a pixel to be the object's."""
    stages: tuple[StageTrace, ...]
    """What each fusion module selected; empty for the baseline."""


def upsample(logits: Tensor, height: int, width: int) -> Tensor:
    """Return the head's logits (B, 1, h, w) at the image's size, corners on corners."""
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=True)


def fusion_blocks(depth: int, stages: int) -> tuple[int, ...]:
    """Blocks (from 0) that a fusion module stands before: 4th, 8th and 12th for 12 blocks and 3 stages."""
    return tuple(round(depth * stage / stages) - 1 for stage in range(1, stages + 1))


class MST(nn.Module):
    """Adaptive Multi-Scale Tokens (arXiv:2401.04403) on a plain ViT; without extra scales, the baseline.

    The previous mask and the click maps enter through a second patch embedding that is added to the image's
    tokens (SimpleClick). Every scale embeds both with kernels resized from the base scale's.

    Args:
        config: size, scales and stages; `image_size` gives the grid that positions are stored for, but any
            image whose sides are multiples of all patch sizes is accepted.
        recompute: whether a backward pass computes each block again: less memory, a third more time.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, *, recompute: bool = False) -> None:
        super().__init__()
        self.config, self._recompute = config, recompute
        dim = config.dimensions
        grid = config.image_size // config.patch_size
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.patch_embed = PatchEmbed(dim.embed_dim, config.patch_size, config.patch_sizes)
        self.pos_embed = PositionEmbed((grid, grid), dim.embed_dim)
        self.blocks = nn.ModuleList(
            Block(
                dim.embed_dim,
                dim.num_heads,
                config.layer_scale,
                window=0 if number % config.global_every == 0 else config.window,
            )
            for number in range(1, dim.depth + 1)
        )
        self.norm = nn.LayerNorm(dim.embed_dim, eps=NORM_EPS) if config.final_norm else nn.Identity()
        places = fusion_blocks(dim.depth, config.fusion_stages) if config.patch_sizes else ()
        self.fusions = nn.ModuleDict(
            {
                str(place): FusionStage(
                    dim.embed_dim,
                    dim.num_heads,
                    config.update_heads,
                    config.k_ratio,
                    guided_by_all=config.scale_choice == "all",
                    mlp_ratio=config.fusion_mlp_ratio,
                    own_scales=len(config.patch_sizes) if config.fusion_per_scale else 0,
                )
                for place in places
            }
        )
        self.click_context = ClickContext(dim.head_width, config.patch_size) if config.click_context else None
        self.neck = SimpleFPN(dim.embed_dim, dim.neck_widths).to(memory_format=torch.channels_last)
        widths: tuple[int, ...] = dim.neck_widths
        self.detail = None
        if config.detail:
            detail = Detail(IMAGE_CHANNELS + COORD_CHANNELS, widths[0])
            self.detail = detail.to(memory_format=torch.channels_last)
            widths = (*widths, widths[0])
        self.head = MLPHead(widths, dim.head_width, config.dropout).to(memory_format=torch.channels_last)
        self._initialize()

    def forward(self, image: Tensor, clicks: Tensor, prev_mask: Tensor, *, full_size: bool = True) -> Output:
        """Predict the object that the clicks mean.

        Args:
            image: (B, 3, H, W), RGB in [0, 1]; H and W multiples of every patch size.
            clicks: (B, N, 3) in pixels of this image, as `mst.clicks.click_tensor` packs them.
            prev_mask: (B, 1, H, W), probabilities of the previous prediction; zeros before the first.
            full_size: whether logits are as large as the image; else as the head's finest map, which is a
                sixteenth of the numbers where they must travel (`upsample` does the rest).

        Returns:
            Logits, and what the fusion modules selected.

        Raises:
            ValueError: a side of the image is no multiple of a patch size, or of a window.
        """
        height, width = image.shape[-2:]
        maps = click_maps(clicks, height, width, self.config.click_radius)
        pixels = torch.cat([(image - self.mean) / self.std, prev_mask, maps], 1)
        base = self._embed(pixels, self.config.patch_size)
        scales = [self._embed(pixels, size) for size in self.config.patch_sizes]
        stages = []
        for number, block in enumerate(self.blocks):
            if str(number) in self.fusions:
                base, scales, trace = self.fusions[str(number)](base, scales, clicks)
                stages.append(trace)
            base = base._replace(tokens=self._run(block, base))
        tokens = self.norm(base.tokens)
        context = None
        if self.click_context is not None:
            context = self.click_context(tokens, base.grid, clicks, prev_mask)
        # Tokens are pixels with their channels side by side: as channels-last features they need no copy.
        features = tokens.view(image.shape[0], *base.grid, -1).permute(0, 3, 1, 2)
        pyramid = self.neck(features)
        if self.detail is not None:
            pyramid.append(self.detail(pixels))
        logits = self.head(pyramid, context)
        return Output(upsample(logits, height, width) if full_size else logits, tuple(stages))

    def _run(self, block: nn.Module, base: Scale) -> Tensor:
        if self._recompute and torch.is_grad_enabled():
            tokens: Tensor = checkpoint(block, base.tokens, base.grid, use_reentrant=False)
        else:
            tokens = block(base.tokens, base.grid)
        return tokens

    def _embed(self, pixels: Tensor, patch_size: int) -> Scale:
        grid = (pixels.shape[-2] // patch_size, pixels.shape[-1] // patch_size)
        positions = self.pos_embed(grid)
        return Scale(patch_size, grid, self.patch_embed(pixels, patch_size) + positions, positions)

    def _initialize(self) -> None:
        for block in self.blocks:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)
