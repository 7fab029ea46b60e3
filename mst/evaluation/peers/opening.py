"""What every method takes: the images and clicks that a model's `Predictor` takes, and no others."""

from collections.abc import Callable, Sequence
from functools import wraps

from mst.clicks import Click, Mask, as_clicks, check_clicks
from mst.data.pixels.arrays import AnyImage, as_image
from mst.data.pixels.images import RGB
from mst.errors import ClickError
from mst.predictor import Segment


def opening(open_rgb: Callable[[RGB], Segment]) -> Callable[[AnyImage], Segment]:
    """Return a method that checks what it is given before `open_rgb` and its answers see it.

    Its errors are those of `mst.data.pixels.arrays.as_image`, and ClickError: no click at all, one outside
    the image, or what is no click. A positive click is not asked for: a correction may begin with a negative
    one.
    """

    @wraps(open_rgb)
    def open_image(image: AnyImage) -> Segment:
        pixels = as_image(image)
        segment = open_rgb(pixels)

        def checked(clicks: Sequence[Click]) -> Mask:
            clicks = as_clicks(clicks)
            if not clicks:
                raise ClickError("at least one click is needed")
            check_clicks(clicks, *pixels.shape[:2], needs_positive=False)
            return segment(clicks)

        return checked

    return open_image
