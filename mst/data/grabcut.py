"""Reader of the GrabCut evaluation set (50 images; Rother et al. 2004)."""

from pathlib import Path

from mst.data.annotations import Sample
from mst.data.images import read_image, read_labels
from mst.errors import DataError

_VOID, _OBJECT = 128, 255


def list_grabcut(root: Path) -> list[tuple[Path, Path]]:
    """List the pairs (image, trimap) of `root/data_GT/ID.*` and `root/boundary_GT/ID.bmp`, by name.

    Raises:
        DataError: the folder has another layout, or an image lacks its trimap.
    """
    folder = root / "data_GT"
    if not folder.is_dir():
        raise DataError(f"{root}: not the GrabCut set, which has the folders data_GT and boundary_GT")
    pairs = [(image, root / "boundary_GT" / f"{image.stem}.bmp") for image in sorted(folder.iterdir())]
    missing = [trimap for _, trimap in pairs if not trimap.is_file()]
    if missing:
        raise DataError(
            f"{root}: {len(missing)} of {len(pairs)} trimaps are missing, the first is {missing[0]}"
        )
    return pairs


def read_grabcut_sample(image: Path, trimap: Path) -> Sample:
    """Read one object; the trimap's 255 is object, 128 void, all else background.

    Raises:
        DataError: a file is unreadable, or their sizes differ.
    """
    labels = read_labels(trimap)
    return Sample(f"grabcut/{image.stem}", read_image(image), labels == _OBJECT, labels == _VOID)
