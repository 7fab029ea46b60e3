"""Images as annotators have them: turned by EXIF, grey, of 16 bits, transparent, CMYK."""

import numpy as np
from PIL import Image, ImageOps

from mst.data.images import RGB, opened

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What is read; Pillow knows more, but some of it starts other programs (EPS) or is hardly ever tested."""


def decode(data: bytes, max_pixels: int) -> RGB:
    """Decode an image file to what a person sees.

    It is turned as EXIF says, and what is transparent shows white. Grey levels of more than 8 bits are
    stretched, the darkest to black and the brightest to white: files do not say how many bits they use.

    Args:
        data: the file's bytes; of several frames the first is read.
        max_pixels: most pixels (H * W) to accept; checked before any is decoded.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageTooLargeError: more than `max_pixels`.
        ImageError: no image, or a broken one.
    """
    with opened(data, "image", max_pixels, FORMATS) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            return _stretched(np.asarray(upright, np.float64))
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            over = upright.convert("RGBA")
            white = Image.new("RGBA", over.size, "white")
            upright = Image.alpha_composite(white, over)
        return np.asarray(upright.convert("RGB"))


def _stretched(levels: np.ndarray) -> RGB:
    levels = np.nan_to_num(levels, posinf=0, neginf=0)
    low, high = levels.min(), levels.max()
    grey = (levels - low) * (255 / (high - low)) if high > low else np.zeros_like(levels)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)
