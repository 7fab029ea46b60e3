"""What can go wrong, as a tree: catch `MSTError` for all of it, or the branch you can act on.

MSTError
|-- ConfigError      a setting is unknown or has a wrong value
|-- DataError        a data set cannot be used as it is
|   |-- NothingToClickError
|   |-- AnnotationError  one annotation cannot be used
|   |   |-- SizeError
|   |   `-- MaskError
|   `-- ImageError   one image cannot be read
|       `-- ImageTooLargeError
|-- ClickError       a list of clicks that no mask can be predicted from
|-- CheckpointError  a checkpoint is damaged, or made for another architecture
|-- PredictionError  a model's answer is no number
|-- TrainingError    a training cannot go on
`-- ServerError      a server refused a request, or could not be reached
"""


class MSTError(Exception):
    """The root of this tree; its message says what was wrong, where, and what would be right."""


class ConfigError(MSTError, ValueError):
    """A setting is unknown or has a wrong value."""


class DataError(MSTError, ValueError):
    """A data set cannot be used as it is."""


class AnnotationError(DataError):
    """What a data set says of one object, or of one image, cannot be used."""


class SizeError(AnnotationError):
    """A mask or an image has another size than its data set says."""


class MaskError(AnnotationError):
    """What is given as a mask is none, or can mean two things."""


class NothingToClickError(DataError):
    """An object has no pixel to click on: it is empty, all void, or its initial mask is right already."""


class ImageError(DataError):
    """One image is missing, broken, or not an image at all."""


class ImageTooLargeError(ImageError):
    """An image has more pixels than the caller allows; it was refused before it was decoded."""


class ClickError(MSTError, ValueError):
    """A list of clicks that no mask can be predicted from."""


class CheckpointError(MSTError, ValueError):
    """A checkpoint is damaged, incomplete, or made for another architecture."""


class PredictionError(MSTError):
    """A model's probabilities are no numbers."""


class TrainingError(MSTError):
    """A training cannot go on: its loss is no number any more, or its memory is too small."""


class ServerError(MSTError):
    """A server refused a request, or could not be reached."""
