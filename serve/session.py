"""From an image and a list of clicks to a prediction, by way of the segmenter.

Nothing here is needed to answer a request but the request itself: an image that is no longer in memory is
read again, and a prediction that is not known any more is replayed click by click, with the same result.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from ray.exceptions import RayActorError

from mst.clicks import Click
from mst.data.images import RGB, decode_image
from mst.predictor import Crop, Prediction, Probabilities, next_crop, paste
from serve.cache import ByteLRU
from serve.segmenter import Description
from serve.settings import ServeSettings
from serve.store import ImageStore

Forward = Callable[[Crop], Awaitable[Probabilities]]

_ATTEMPTS = 4  # of a call whose replica died; a call has no effect but its answer


class Sessions:
    """Images and predictions of one HTTP replica.

    Args:
        settings: of the server.
        store: of all replicas.
        forward: calls the model.
    """

    def __init__(self, settings: ServeSettings, store: ImageStore, forward: Forward) -> None:
        self._settings, self._store, self._forward = settings, store, forward
        self._images: ByteLRU[str, RGB] = ByteLRU(settings.cache_bytes)
        self._predictions: ByteLRU[tuple[str, str, tuple[Click, ...]], Prediction] = ByteLRU(
            settings.cache_bytes
        )

    async def add_image(self, data: bytes) -> tuple[str, RGB]:
        """Decode and store an image.

        Returns:
            Its id and pixels.

        Raises:
            ImageTooLargeError: more pixels than the settings allow.
            ImageError: the bytes are no image, or a broken one.
        """
        image = await asyncio.to_thread(self._decode, data)
        image_id = await asyncio.to_thread(self._store.put, data)
        self._images.put(image_id, image, image.nbytes)
        return image_id, image

    async def image(self, image_id: str) -> RGB | None:
        """Return an image's pixels; None where it was never stored."""
        image = self._images.get(image_id)
        if image is None:
            data = await asyncio.to_thread(self._store.get, image_id)
            if data is None:
                return None
            image = await asyncio.to_thread(self._decode, data)
            self._images.put(image_id, image, image.nbytes)
        return image

    async def predict(
        self, image_id: str, image: RGB, clicks: Sequence[Click], model: Description
    ) -> tuple[Prediction, float]:
        """Predict the object that the clicks mean, from the longest prefix of them that is known.

        Returns:
            The prediction, and the seconds that the model took.
        """
        seconds = 0.0
        known, done = self._longest_known(image_id, clicks, model)
        for number in range(done + 1, len(clicks) + 1):
            crop = await asyncio.to_thread(
                next_crop, image, clicks[:number], known, model.image_size, model.eval
            )
            start = time.perf_counter()
            probabilities = await self._call(crop)
            seconds += time.perf_counter() - start
            known = await asyncio.to_thread(paste, crop, probabilities, clicks[:number], image.shape[:2])
            key = (image_id, model.info.digest, tuple(clicks[:number]))
            self._predictions.put(key, known, known.probabilities.nbytes)
        assert known is not None  # there is at least one click
        return known, seconds

    def _longest_known(
        self, image_id: str, clicks: Sequence[Click], model: Description
    ) -> tuple[Prediction | None, int]:
        for number in range(len(clicks), 0, -1):
            known = self._predictions.get((image_id, model.info.digest, tuple(clicks[:number])))
            if known is not None:
                return known, number
        return None, 0

    async def _call(self, crop: Crop) -> Probabilities:
        for attempt in range(_ATTEMPTS):
            try:
                return await self._forward(crop)
            except RayActorError:
                if attempt == _ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    def _decode(self, data: bytes) -> RGB:
        return decode_image(data, max_pixels=self._settings.max_pixels, upright=True)
