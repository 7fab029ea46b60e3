import cv2
import numpy as np
import skimage.data

from benchmarks.studies.overlap import likeness


def test_a_photo_is_found_again_smaller_compressed_and_mirrored():
    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.cat()]
    small = cv2.resize(photos[1][:, ::-1], (230, 150), interpolation=cv2.INTER_AREA)
    stored = cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)
    turned = np.ascontiguousarray(np.rot90(photos[0]))
    found = likeness([stored, turned], photos)
    assert found.shape == (2, 3)
    assert found[0, 1] > 0.98
    assert found[1, 0] > 0.999
    assert np.delete(found.ravel(), [1, 3]).max() < 0.7


def test_a_photo_without_any_contrast_is_like_none():
    assert likeness([np.full((40, 60, 3), 7, np.uint8)], [skimage.data.cat()]).item() == 0
