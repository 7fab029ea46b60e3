"""MST, the whole network: image, clicks and previous mask to logits."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mst.clicks import click_maps
from mst.config import ModelConfig
from mst.model.attention import NORM_EPS, Block
from mst.model.click_context import ClickContext
from mst.model.detail import Detail
from mst.model.encoded import Encoded, Features, digest
from mst.model.fusion import FusionStage, StageTrace
from mst.model.head import MLPHead
from mst.model.narrowing import Narrowing
from mst.model.neck import SimpleFPN
from mst.model.patch_embed import COORD_CHANNELS, IMAGE_CHANNELS, PatchEmbed, PositionEmbed, Scale, unsettle

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


def fusion_places(config: ModelConfig) -> tuple[int, ...]:
    """Blocks that a fusion module stands before, counted from the ViT's first; none for the baseline.

    They are spread over the blocks behind the clicks' entry; where there are none, one stands in their place.
    """
    if not config.patch_sizes:
        return ()
    if not config.blocks_behind_clicks:
        return (config.click_entry,)
    places = fusion_blocks(config.blocks_behind_clicks, config.fusion_stages)
    return tuple(config.click_entry + place for place in places)


def _detail(channels: int, width: int) -> Detail:
    detail: Detail = Detail(channels, width).to(memory_format=torch.channels_last)
    return detail


class MST(nn.Module):
    """Adaptive Multi-Scale Tokens (arXiv:2401.04403) on a plain ViT; without extra scales, the baseline.

    The previous mask and the click maps enter through a second patch embedding that is added to the image's
    tokens (SimpleClick). Every scale embeds both with kernels resized from the base scale's.

    Where clicks enter later than the paper's (`click_entry`), what lies before depends on the image alone:
    `encode` computes it once, and each `click` costs what lies behind. The extra scales then embed the image
    alone, and the rapid update of the first fusion module is part of `encode`.

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
        self._digest: str | None = None
        vit, late = config.dimensions, config.late
        grid = config.image_size // config.patch_size
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.patch_embed = PatchEmbed(
            vit.embed_dim, config.patch_size, config.patch_sizes, coords_dim=late.embed_dim
        )
        self.pos_embed = PositionEmbed((grid, grid), vit.embed_dim)
        self.blocks = nn.ModuleList(
            Block(
                vit.embed_dim,
                vit.num_heads,
                config.layer_scale,
                window=0 if number % config.global_every == 0 else config.window,
            )
            for number in range(1, vit.depth + 1)
        )
        self.norm = nn.LayerNorm(vit.embed_dim, eps=NORM_EPS) if config.final_norm else nn.Identity()
        self.narrowing = None
        if config.late_width or config.features:
            looks, has_scales = len(config.features) + 1, bool(config.patch_sizes)
            self.narrowing = Narrowing(vit.embed_dim, late.embed_dim, looks, has_scales=has_scales)
        self.late_blocks = nn.ModuleList(
            Block(late.embed_dim, late.num_heads, False) for _ in range(config.late_blocks)
        )
        self.late_norm = nn.LayerNorm(late.embed_dim, eps=NORM_EPS) if config.late_blocks else nn.Identity()
        self.fusions = nn.ModuleDict(
            {
                str(place): FusionStage(
                    late.embed_dim,
                    late.num_heads,
                    config.update_heads,
                    config.k_ratio,
                    guided_by_all=config.scale_choice == "all",
                    mlp_ratio=config.fusion_mlp_ratio,
                    own_scales=len(config.patch_sizes) if config.fusion_per_scale else 0,
                )
                for place in fusion_places(config)
            }
        )
        self.click_context = (
            ClickContext(late.head_width, config.patch_size) if config.click_context else None
        )
        self.neck = SimpleFPN(late.embed_dim, late.neck_widths).to(memory_format=torch.channels_last)
        widths: tuple[int, ...] = late.neck_widths
        self.detail = self.detail_image = None
        if config.detail:
            of_image = IMAGE_CHANNELS if not config.click_entry else 0
            self.detail = _detail(COORD_CHANNELS + of_image, widths[0])
            self.detail_image = _detail(IMAGE_CHANNELS, widths[0]) if config.click_entry else None
            widths = (*widths, widths[0])
        head = MLPHead(widths, late.head_width, config.dropout, config.head_convs)
        self.head = head.to(memory_format=torch.channels_last)
        self._initialize()

    def forward(
        self,
        image: Tensor | Features | Encoded,
        clicks: Tensor,
        prev_mask: Tensor,
        *,
        full_size: bool = True,
    ) -> Output:
        """Predict the object that the clicks mean: `encode`, and then `click`.

        Args:
            image: (B, 3, H, W), RGB in [0, 1]; H and W multiples of every patch size. Or what is known of it.
            clicks: (B, N, 3) in pixels of this image, as `mst.clicks.click_tensor` packs them.
            prev_mask: (B, 1, H, W), probabilities of the previous prediction; zeros before the first.
            full_size: whether logits are as large as the image; else as the head's finest map, which is a
                sixteenth of the numbers where they must travel (`upsample` does the rest).

        Returns:
            Logits, and what the fusion modules selected.

        Raises:
            ValueError: a side of the image is no multiple of a patch size, or of a window.
        """
        encoded = image if isinstance(image, Encoded) else self.encode(image)
        return self.click(encoded, clicks, prev_mask, full_size=full_size)

    def settle(self, sides: Sequence[int]) -> None:
        """Resize kernels and positions once for all forwards, until weights are loaded or training begins.

        So long, what was encoded by other weights is refused.

        Args:
            sides: of square images in pixels; others are accepted too, and cost what they did.
        """
        if self.config.click_entry and self._digest is None:  # without an entry nothing is kept of images
            self._digest = digest(self.named_parameters())
        self.patch_embed.settle(of_image=self.config.click_entry > 0)
        for side in sides:
            for size in (self.config.patch_size, *self.config.patch_sizes):
                self.pos_embed.settle((side // size, side // size))

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, as every module."""
        if mode:
            self._unsettle()
        return super().train(mode)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Load weights, as every module."""
        self._unsettle()
        return super().load_state_dict(*args, **options)

    def _unsettle(self) -> None:
        self._digest = None
        unsettle(self.patch_embed)
        unsettle(self.pos_embed)

    def normalized(self, image: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] as the ViT expects them."""
        return (image - self.mean) / self.std

    def features(self, image: Tensor) -> Features:
        """Run the encoder, the blocks before which no click enters, on images (B, 3, H, W) in [0, 1]."""
        pixels = self.normalized(image)
        if not self.config.click_entry:
            return Features(pixels, ())
        base = self._embed_image(pixels, self.config.patch_size)
        looks = []
        for number, block in enumerate(self.blocks[: self.config.click_entry], 1):
            base = base._replace(tokens=self._run(block, base))
            if number in self.config.features:
                looks.append(base.tokens)
        last = self.norm(base.tokens) if self.config.click_entry == len(self.blocks) else base.tokens
        return Features(pixels, (*looks, last))

    def encode(self, image: Tensor | Features) -> Encoded:
        """Compute all that clicks need of an image: once for all clicks on it.

        Args:
            image: (B, 3, H, W) in [0, 1], or what the encoder said of it.
        """
        seen = image if isinstance(image, Features) else self.features(image)
        height, width = seen.pixels.shape[-2:]
        if not seen.tokens:
            return Encoded((height, width), seen.pixels)
        size = self.config.patch_size
        grid = (height // size, width // size)
        tokens = seen.tokens[-1] if self.narrowing is None else self.narrowing(seen.tokens)
        base = Scale(size, grid, tokens, tokens.new_empty(0))  # positions are in the tokens by now
        scales = [self._embed_image(seen.pixels, each) for each in self.config.patch_sizes]
        if self.narrowing is not None:
            scales = [self.narrowing.scale(each) for each in scales]
        if scales:
            first: FusionStage = next(iter(self.fusions.values()))  # type: ignore[assignment]
            scales = first.update(base, scales)
        detail = None if self.detail_image is None else self.detail_image(seen.pixels)
        is_last = self.click_context is not None and not self.config.blocks_of_vit_behind_clicks
        return Encoded(
            (height, width),
            None,
            base,
            tuple(scales),
            detail,
            seen.tokens[-1] if is_last else None,
            self._digest,
        )

    def click(self, encoded: Encoded, clicks: Tensor, prev_mask: Tensor, *, full_size: bool = True) -> Output:
        """Predict the object that the clicks mean on an image that is encoded; arguments as of `forward`.

        Raises:
            ValueError: it was encoded by other weights, or the previous mask is of an image of another size.
        """
        height, width = encoded.size
        if self._digest and encoded.weights and self._digest != encoded.weights:
            raise ValueError("this image was encoded by other weights; encode it with this model")
        if tuple(prev_mask.shape[-2:]) != (height, width):
            raise ValueError(
                f"the previous mask is of {tuple(prev_mask.shape[-2:])} pixels, the encoded image of "
                f"{(height, width)}"
            )
        maps = torch.cat([prev_mask, click_maps(clicks, height, width, self.config.click_radius)], 1)
        if encoded.base is None:
            assert encoded.pixels is not None
            maps = torch.cat([encoded.pixels, maps], 1)
            base = self._embed(maps, self.config.patch_size)
            scales = [self._embed(maps, size) for size in self.config.patch_sizes]
        else:
            base, scales = encoded.base, list(encoded.scales)
            base = base._replace(tokens=base.tokens + self.patch_embed.maps(maps))
        base, stages = self._mix(base, scales, clicks)
        context = None
        if self.click_context is not None:
            likeness = base.tokens if encoded.likeness is None else encoded.likeness
            context = self.click_context(likeness, base.grid, clicks, prev_mask)
        # Tokens are pixels with their channels side by side: as channels-last features they need no copy.
        features = base.tokens.view(base.tokens.shape[0], *base.grid, -1).permute(0, 3, 1, 2)
        pyramid = self.neck(features)
        if self.detail is not None:
            detail = self.detail(maps)
            pyramid.append(detail if encoded.detail is None else detail + encoded.detail)
        logits = self.head(pyramid, context)
        return Output(upsample(logits, height, width) if full_size else logits, tuple(stages))

    def is_of_encoder(self, parameter: str) -> bool:
        """Whether a parameter of this name is of what `features` computes."""
        if not self.config.click_entry:
            return False
        part, _, rest = parameter.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) < self.config.click_entry
        if part == "norm":
            return not self.config.blocks_of_vit_behind_clicks
        return parameter.startswith(("patch_embed.proj.", "pos_embed."))

    def is_encoder_frozen(self) -> bool:
        """Whether there is an encoder, and nothing of it learns."""
        mine = [each for name, each in self.named_parameters() if self.is_of_encoder(name)]
        return bool(mine) and not any(each.requires_grad for each in mine)

    def _mix(self, base: Scale, scales: list[Scale], clicks: Tensor) -> tuple[Scale, list[StageTrace]]:
        """Run what is behind the clicks' entry: blocks, and the fusion modules among them."""
        entry = self.config.click_entry
        stages: list[StageTrace] = []
        late = [*self.blocks[entry:], *self.late_blocks]
        for number in range(len(late) + 1):
            if (name := str(entry + number)) in self.fusions:
                stage: FusionStage = self.fusions[name]  # type: ignore[assignment]
                if entry and not stages:  # the scales of an encoded image have had this update
                    base, trace = stage.guide(base, scales, clicks)
                else:
                    base, scales, trace = stage(base, scales, clicks)
                stages.append(trace)
            if number < len(late):
                base = base._replace(tokens=self._run(late[number], base))
        last = self.norm if self.config.blocks_of_vit_behind_clicks else self.late_norm
        return base._replace(tokens=last(base.tokens)), stages

    def _run(self, block: nn.Module, base: Scale) -> Tensor:
        if self._recompute and torch.is_grad_enabled():
            tokens: Tensor = checkpoint(block, base.tokens, base.grid, use_reentrant=False)
        else:
            tokens = block(base.tokens, base.grid)
        return tokens

    def _embed(self, pixels: Tensor, patch_size: int) -> Scale:
        """Image and maps (B, 6, H, W) as tokens."""
        return self._placed(self.patch_embed(pixels, patch_size), pixels, patch_size)

    def _embed_image(self, pixels: Tensor, patch_size: int) -> Scale:
        """An image (B, 3, H, W) as tokens."""
        return self._placed(self.patch_embed.image(pixels, patch_size), pixels, patch_size)

    def _placed(self, tokens: Tensor, pixels: Tensor, patch_size: int) -> Scale:
        grid = (pixels.shape[-2] // patch_size, pixels.shape[-1] // patch_size)
        positions = self.pos_embed(grid)
        return Scale(patch_size, grid, tokens + positions, positions)

    def _initialize(self) -> None:
        for block in [*self.blocks, *self.late_blocks]:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)
