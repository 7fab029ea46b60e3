"""Settings of how clicks are answered."""

from typing import Annotated

from pydantic import Field

from mst.config.settings import Count, Natural, Settings


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
