"""Settings of the loss, of the optimizer, and of a training's length, batches and checkpoints."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mst.config.settings import Count, Natural, Positive, Probability, Settings


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
    anchor: Probability = 0.0
    """Share of the weights that the training began with in those that are validated and saved. What the first
    ones knew is forgotten less (WiSE-FT, arXiv:2109.01903)."""


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
    features_cache: str | None = None
    """Folder on each machine for what a frozen encoder says of `data.fixed_views`. Null keeps nothing."""
    features_gb: Positive = 20
    """Most gigabytes that this folder takes."""
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

    def frozen_in(self, epoch: int) -> tuple[str, ...]:
        """Return the parts that stay as they are in an epoch, from 0."""
        return self.frozen if epoch < self.freeze_epochs else ()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return self.samples_per_epoch // self.batch_size

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.steps_per_epoch
