"""Settings of the network."""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from mst.config.settings import Count, Natural, Positive, Probability, Settings


class Dimensions(NamedTuple):
    """What a model size stands for."""

    embed_dim: int
    depth: int
    num_heads: int
    neck_widths: tuple[int, int, int, int]
    head_width: int


# ViT sizes as timm names them; neck and head of base as in SimpleClick, the others in proportion.
SIZES: dict[str, Dimensions] = {
    "tiny": Dimensions(192, 12, 3, (32, 64, 128, 256), 64),
    "small": Dimensions(384, 12, 6, (64, 128, 256, 512), 128),
    "base": Dimensions(768, 12, 12, (128, 256, 512, 1024), 256),
    "large": Dimensions(1024, 24, 16, (192, 384, 768, 1536), 256),
}


_HEAD_DIM, _LEAST = 64, 16  # channels of an attention head, and of the narrowest map of a late part


class ModelConfig(Settings):
    """The network. Without `patch_sizes` it is the baseline (SimpleClick); with them it is MST."""

    size: str = "base"
    """Width and depth of the ViT: tiny 192, small 384, base 768 (12 blocks), large 1024 (24 blocks)."""
    depth: Count | None = None
    """Number of transformer blocks; null for the number that the size has."""
    image_size: Count = 448
    """Side in pixels of the square input that images are resized to."""
    patch_size: Count = 16
    """Side in pixels of a base token's patch."""
    patch_sizes: tuple[Count, ...] = (8, 28)
    """Sides in pixels of the patches of the extra scales; empty for the baseline."""
    k_ratio: Annotated[float, Field(gt=0, le=1)] = 1 / 12
    """Share of each extra scale's tokens that top-k keeps (MST eq. 4)."""
    fusion_stages: Count = 3
    """Number of fusion modules, evenly spaced among the blocks; the last is before the last block."""
    scale_choice: Literal["best", "all"] = "best"
    """Which scales guide an image's base tokens: the most similar one (the paper), or all of them."""
    fusion_mlp_ratio: Natural = 0
    """Width of an MLP after each attention of the fusion modules, in multiples of the tokens'; 0 for none."""
    fusion_per_scale: bool = False
    """Whether each extra scale has attentions of its own in the fusion modules, rather than shared ones."""
    click_entry: Natural = 0
    """Block before which clicks and previous mask enter: 0 is the paper's; the number of blocks is after all.
    What lies before it depends on the image alone, and is computed once for all clicks."""
    features: tuple[Count, ...] = ()
    """Blocks, from 1, whose tokens the late part sees beside the last one's; clicks must enter after all."""
    late_width: Natural = 0
    """Width of the part after all blocks, of which each click costs one pass; 0 for the ViT's."""
    late_blocks: Natural = 0
    """Blocks of the part after all of the ViT's; they mix clicks and tokens."""
    update_heads: Count = 1
    """Heads of the attention by which the base tokens update the extra scales; its cost grows with them."""
    click_radius: Positive = 5
    """Radius in pixels of the disk that a click draws into its map."""
    layer_scale: bool = False
    """Whether blocks scale their residuals per channel, as DINOv2's do."""
    final_norm: bool = False
    """Whether a LayerNorm follows the last block, as in DINOv2."""
    click_context: bool = False
    """Whether the head is told how each token relates to the clicks (not in the paper; learns from less)."""
    detail: bool = False
    """Whether the head also sees the image at a quarter of its size (not in the paper; sharper borders)."""
    head_convs: Natural = 0
    """Convolutions of the head at a quarter of the image's size (not in the paper; not measured yet)."""
    window: Natural = 0
    """Side in tokens of the windows that most blocks attend within (SimpleClick: 14); 0 for none."""
    global_every: Count = 6
    """With windows, every block whose number is a multiple of this attends globally."""
    dropout: Probability = 0.1
    """Dropout before the head's last layer, in training alone."""

    @property
    def dimensions(self) -> Dimensions:
        """Dimensions of `size`, with `depth` in place where it is set."""
        dimensions = SIZES[self.size]
        return dimensions if self.depth is None else dimensions._replace(depth=self.depth)

    @property
    def has_own_late_part(self) -> bool:
        """Whether the part after the ViT has a width, blocks or features of its own."""
        return bool(self.late_width or self.late_blocks or self.features)

    @property
    def late(self) -> Dimensions:
        """Dimensions of what clicks pass through: the ViT's, or those of the part after it."""
        vit = self.dimensions
        if not self.late_width:
            return vit
        neck = tuple(max(_LEAST, width * self.late_width // vit.embed_dim) for width in vit.neck_widths)
        head = max(_LEAST, vit.head_width * self.late_width // vit.embed_dim)
        heads = max(1, self.late_width // _HEAD_DIM)
        return Dimensions(self.late_width, self.late_blocks, heads, neck, head)  # type: ignore[arg-type]

    @property
    def blocks_of_vit_behind_clicks(self) -> int:
        """Blocks of the ViT that each click passes through."""
        return self.dimensions.depth - self.click_entry

    @property
    def blocks_behind_clicks(self) -> int:
        """Blocks that each click passes through."""
        return self.blocks_of_vit_behind_clicks + self.late_blocks

    @field_validator("size")
    @classmethod
    def _size_is_known(cls, size: str) -> str:
        if size not in SIZES:
            raise ValueError(f"unknown size '{size}'; known are {', '.join(SIZES)}")
        return size

    @model_validator(mode="after")
    def _scales_fit(self) -> Self:
        for patch in (self.patch_size, *self.patch_sizes):
            if self.image_size % patch:
                raise ValueError(f"image_size {self.image_size} is no multiple of the patch size {patch}")
        if len({self.patch_size, *self.patch_sizes}) <= len(self.patch_sizes):
            raise ValueError(
                f"patch_sizes {self.patch_sizes} and patch_size {self.patch_size} must all differ"
            )
        if self.window and self.image_size // self.patch_size % self.window:
            raise ValueError(
                f"image_size {self.image_size} has {self.image_size // self.patch_size} base tokens a side, "
                f"no multiple of the window {self.window}"
            )
        if self.dimensions.embed_dim % self.update_heads:
            raise ValueError(
                f"update_heads {self.update_heads} do not divide the width {self.dimensions.embed_dim}"
            )
        return self

    @model_validator(mode="after")
    def _clicks_enter(self) -> Self:
        depth, entry = self.dimensions.depth, self.click_entry
        if entry > depth:
            raise ValueError(f"click_entry {entry} exceeds the {depth} blocks; {depth} is after all of them")
        if self.has_own_late_part and entry != depth:
            raise ValueError(
                "late_width, late_blocks and features are of the part after all blocks: they need "
                f"click_entry {depth}, not {entry}"
            )
        if list(self.features) != sorted({each for each in self.features if each < depth}):
            raise ValueError(f"features {self.features} must be ascending blocks, from 1 to {depth - 1}")
        if self.late_width and self.late_width % self.late.num_heads:
            raise ValueError(
                f"late_width {self.late_width} is no multiple of its {self.late.num_heads} heads"
            )
        room = max(1, self.blocks_behind_clicks)
        if self.fusion_stages > room and (self.patch_sizes or not entry):
            where = f"behind click_entry {entry}" if entry else ""
            raise ValueError(f"fusion_stages {self.fusion_stages} exceed the {room} blocks {where}".rstrip())
        return self
