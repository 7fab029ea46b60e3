"""Settings of the samples that are trained on, and of the clicks that they begin with."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from mst.config.settings import Count, Natural, Positive, Probability, Range, Settings


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
    fixed_views: Natural = 0
    """Number of views of images that all epochs share, each with other clicks each time. 0 makes each sample
    a new view. Their features can be kept (`train.features_cache`)."""
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
