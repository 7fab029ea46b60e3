"""The one tree of settings of an experiment.

A config is built in Python (`pipelines/recipes/`), changed by dotted overrides (`mst.overrides`), and
stored as JSON in every checkpoint. It is frozen; an unknown key or a wrong value is an error that names it.
"""

from math import lcm
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Range = tuple[Positive, Positive]


class Settings(BaseModel):
    """Base of all settings: frozen, closed to unknown keys, documented by the lines under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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


class DataConfig(Settings):
    """Where samples come from and how they are varied."""

    root: str = "data/synthetic"
    """Folder that the sources' paths start from: of this machine, s3://... or https://..."""
    train: tuple[str, ...] = ("coco:annotations/instances_train.json", "lvis:annotations/lvis_train.json")
    """Training sources, each `format:path` (see `mst.data.sources`); one image's objects are joined."""
    val: tuple[str, ...] = ("coco:annotations/instances_val.json",)
    """Validation sources, whose objects choose the best checkpoint."""
    min_area: Probability = 0.005
    """Smallest object to train on, as a share of the crop (1000 px at 448 x 448)."""
    resize: Range = (0.5, 1.5)
    """Range of the random resize before a random crop, for a crop of 448; scaled with the image size."""
    crop_whole: Probability = 0.0
    """Probability that a sample is the whole image, as evaluation sees it at the first click."""
    crop_object: Probability = 0.0
    """Probability that a sample is the box of an object and its surroundings, as after zoom-in."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    brightness: Probability = 0.25
    """Largest change of brightness, as a share of full scale."""
    contrast: Probability = 0.25
    """Largest relative change of contrast."""
    rgb_shift: Annotated[int, Field(ge=0, le=255)] = 10
    """Largest shift of each colour channel, in levels of 255."""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest relative change of the colours' distance from grey."""
    hue: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest turn of the hues, in degrees."""
    grey: Probability = 0.0
    """Probability of a sample without colours."""
    blur: Probability = 0.0
    """Probability of a sample that is blurred, by up to 2 px at 448."""
    jpeg: Probability = 0.0
    """Probability of a sample with the traces of a JPEG of quality 30 to 90."""
    copy_paste: Probability = 0.0
    """Probability that another image's object is pasted into a sample, as its object or as another."""
    merge: Probability = 0.15
    """Probability that two objects make one sample (RITM)."""
    stuff: Probability = 0.3
    """Probability that a sample takes the image's stuff (sky, grass) as objects too."""
    parts: Probability = 1.0
    """Probability that a sample takes parts (objects inside larger ones) too; otherwise wholes alone."""
    background: Probability = 0.05
    """Probability of a sample without an object (RITM)."""
    max_faulty: Probability = 0.1
    """Share of a source's objects, and of the images drawn, that may be faulty; more ends the training."""
    loader_workers: Natural = 0
    """Processes that prepare batches for each training worker; 0 prepares them in the worker itself."""
    cache: str | None = None
    """Folder for copies of images that lie in a store (s3://, https://); null keeps none."""
    cache_gb: Positive = 50
    """Most gigabytes that the copies take, over all workers of a machine."""

    @model_validator(mode="after")
    def _ranges_fit(self) -> Self:
        if self.resize[0] > self.resize[1]:
            raise ValueError(f"resize {self.resize} must be (smallest, largest)")
        if self.crop_whole + self.crop_object > 1:
            raise ValueError("crop_whole and crop_object add up to more than 1")
        return self


class ClickConfig(Settings):
    """How clicks are simulated in training (RITM, section 3.2)."""

    max_clicks: Count = 24
    """Most clicks of each sign that a sample starts with."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Each further click is this much less likely than the one before."""
    centred: Probability = 0.0
    """Probability that the first click lies where an evaluation's does, deepest in the object."""
    max_iterations: Natural = 3
    """Most clicks that are added by looking at the model's own errors."""


class LossConfig(Settings):
    """L = L_seg + contrastive * L_c (MST eq. 8)."""

    normalized: bool = True
    """Normalized focal loss (RITM) rather than the plain focal loss."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Weight of object pixels; background pixels weigh 1 - alpha."""
    gamma: Annotated[float, Field(ge=0)] = 2.0
    """Focusing exponent of the focal loss."""
    contrastive: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the triplet patch loss (MST eq. 7); 0 switches it off."""


class OptimConfig(Settings):
    """AdamW and its learning rate over time."""

    lr: Positive = 5e-6
    """Learning rate of neck and head. The factors below multiply it."""
    backbone_lr_scale: Annotated[float, Field(ge=0)] = 1.0
    """Factor on the learning rate of the ViT (blocks, image and position embedding)."""
    click_lr_scale: Annotated[float, Field(ge=0)] = 1.0
    """Factor on the learning rate of the embedding of clicks and previous mask."""
    fusion_lr_scale: Annotated[float, Field(ge=0)] = 1.0
    """Factor on the learning rate of the fusion modules."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate from each block of the ViT to the one before it; 1 for the same rate."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """AdamW's running-average factors."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of matrices; vectors (biases, norms, scales) and positions have none."""
    schedule: Literal["constant", "step", "cosine"] = "step"
    """Shape of the learning rate after warm-up."""
    milestones: tuple[Natural, ...] = (50, 70)
    """Epochs at which the step schedule divides the learning rate by ten."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises linearly from zero."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the running average of weights that is validated and saved; 0 keeps the weights themselves."""


class TrainConfig(Settings):
    """Length of a training, its batches and checkpoints."""

    init: str | None = None
    """Weights to start from: a checkpoint folder, a ViT's or SimpleClick's file, or `timm:NAME`."""
    reset: tuple[Literal["fusions", "neck", "head"], ...] = ()
    """Parts of the network that start from random weights even if `init`, a checkpoint, has them."""
    freeze_epochs: Natural = 0
    """First epochs in which the parts of `frozen` stay as they are, and all else learns to use them."""
    frozen: tuple[Literal["backbone", "encoder", "clicks", "fusions"], ...] = ("backbone",)
    """Parts to freeze: the ViT, its part before clicks enter, the embedding of clicks and previous mask, the
    fusion modules. With a frozen encoder a step encodes once, without gradients.

    Backbone, clicks and fusions leave the tokens as they were: for `model.click_context`, which tells the
    head of the clicks.
    """
    epochs: Count = 230
    """Passes of `samples_per_epoch` samples each."""
    samples_per_epoch: Count = 30_000
    """Samples drawn in one epoch over all workers together."""
    batch_size: Count = 24
    """Samples of one optimizer step over all workers together."""
    micro_batches: Natural = 0
    """Parts of a batch, each a forward and a backward, which the workers share; 0 for one each.

    With a number, the steps of a run are the same for any number of workers up to it.
    """
    sides: tuple[Count, ...] = ()
    """Sides in pixels of the network's input, of which each step draws one; a side given twice is drawn twice
    as often. Empty for `model.image_size` alone, which none may exceed.
    """
    log_every: Count = 20
    """Steps between two points of the logged curves."""
    checkpoint_every: Natural = 0
    """Steps between two checkpoints, beside those of validations; 0 for these alone."""
    validate_every: Count = 1
    """Epochs between two validations, each with a checkpoint; the last epoch always has one."""
    patience: Natural = 0
    """Training stops after so many validations without a better one; 0 for never."""
    val_objects: Count = 200
    """Most objects of a validation, spread evenly over the validation set."""
    val_clicks: Count = 20
    """Most clicks on an object of a validation."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Precision of forward and backward. Weights, optimizer and losses stay fp32. tf32 is fp32 but for
    products of matrices, on GPUs that have it. fp16 scales the loss."""
    recompute: bool = False
    """Compute the blocks' activations again in the backward pass, to save memory."""
    compile: bool = False
    """Compile the network (torch.compile). The first steps then take minutes, the others less time."""
    max_bad_steps: Count = 20
    """Training stops after so many steps in a row without a finite loss or gradient. They change nothing."""
    choose_by: Literal["noc90", "noc85", "iou"] = "noc90"
    """What makes a checkpoint the best: fewest clicks to an IoU, or the highest mean IoU over the clicks."""
    keep: Count = 3
    """Newest checkpoints that are kept; so is the best by validation."""

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.samples_per_epoch % self.batch_size:
            raise ValueError(
                f"samples_per_epoch {self.samples_per_epoch} is no multiple of batch_size {self.batch_size}"
            )
        if self.micro_batches and self.batch_size % self.micro_batches:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batches {self.micro_batches}"
            )
        return self

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return self.samples_per_epoch // self.batch_size

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.steps_per_epoch


class EvalConfig(Settings):
    """How clicks are answered, in evaluation and serving."""

    max_clicks: Count = 20
    """Clicks after which an object counts as failed."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.49
    """Probability above which a pixel belongs to the mask."""
    zoom: bool = True
    """Whether the input is cropped around the object from the second click on."""
    zoom_expand: Annotated[float, Field(ge=1)] = 1.4
    """Factor by which the object's box is widened before the crop."""
    zoom_min: Count = 20
    """Smallest side in pixels of the crop."""
    zoom_first: bool = False
    """Whether the first click is answered twice, on the whole image and then closer on what that found."""
    zoom_sides: tuple[Count, ...] = ()
    """Sides in pixels of the network's input, beside its own, in the closer look at a first click: the
    smallest that is no smaller than the crop's longer side. Borders are for later clicks, on more pixels."""
    cascade: Natural = 0
    """Number of further forward passes for each click, with the new previous mask (cf-n)."""

    def smaller_sides(self, size: int) -> tuple[int, ...]:
        """Return those of `zoom_sides` that are smaller than the network's own side `size`, ascending."""
        looks_twice = self.zoom and self.zoom_first
        return tuple(sorted(side for side in self.zoom_sides if side < size)) if looks_twice else ()

    def side_for(self, longer: int, size: int) -> int:
        """Return the side that a crop is brought to whose longer side has `longer` pixels."""
        return next((side for side in self.smaller_sides(size) if side >= longer), size)


class Config(Settings):
    """Everything that determines an experiment."""

    seed: Natural = 0
    """Seed of weights, sample order, augmentation and clicks."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    clicks: ClickConfig = ClickConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _smaller_inputs_fit(self) -> Self:
        model, zoomed = self.model, self.eval.smaller_sides(self.model.image_size)
        fitting = lcm(model.patch_size * max(1, model.window), *model.patch_sizes)
        asked = {"eval.zoom_sides": zoomed, "train.sides": self.train.sides}
        named = [(name, side) for name, sides in asked.items() for side in sides]
        for name, side in named:
            if side > model.image_size:
                raise ValueError(f"{name} {side} is larger than image_size {model.image_size}")
            if side < model.image_size and side % fitting:
                raise ValueError(
                    f"{name} {side} is no multiple of {fitting}, as the model's patches and windows ask"
                )
        return self
