"""Images as annotators have them: turned by EXIF, grey, of 16 bits, transparent, CMYK."""

import numpy as np
from PIL import Image, ImageOps

from mst.data.images import RGB, opened

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What is read; Pillow knows more, but some of it starts other programs (EPS) or is hardly ever tested."""

_PIECE = 2**16  # pixels that are stretched at once


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
            return _stretched(np.asarray(upright))
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            over = upright.convert("RGBA")
            white = Image.new("RGBA", over.size, "white")
            upright = Image.alpha_composite(white, over)
        return np.asarray(upright.convert("RGB"))


def _stretched(levels: np.ndarray) -> RGB:
    """Levels (H, W), piece by piece: the arithmetic takes some 30 bytes a pixel."""
    flat = levels.ravel()
    pieces = [slice(start, start + _PIECE) for start in range(0, flat.size, _PIECE)]
    low = min(_numbers(flat[piece]).min() for piece in pieces)
    high = max(_numbers(flat[piece]).max() for piece in pieces)
    out = np.zeros((flat.size, 3), np.uint8)
    if high > low:
        for piece in pieces:
            grey = (_numbers(flat[piece]) - low) * (255 / (high - low))
            out[piece] = np.rint(grey)[:, None]
    return out.reshape(*levels.shape, 3)


def _numbers(levels: np.ndarray) -> np.ndarray:
    return np.nan_to_num(levels.astype(np.float64), copy=False, posinf=0, neginf=0)
