"""An exported ONNX file in use; needs onnxruntime, numpy and PIL, and no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from richkd.base.errors import InputError, one_line
from richkd.data.pictures import fit, picture, upright
from richkd.use.answers import Answer, Description, best

Array = npt.NDArray[Any]


def open_session(path: Path | str) -> Any:
    """An onnxruntime session on the CPU. InputError where the package or the file is missing."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{path} needs onnxruntime: pip install onnxruntime") from None
    if not Path(path).is_file():
        raise InputError(f"{path} is not there")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # which error depends on where the file is damaged
        raise InputError(f"{path} is not a complete ONNX file: {one_line(error, 120)}") from None


class OnnxStudent:
    """A classifier in a file that `python -m richkd export --to onnx` wrote, on the CPU."""

    def __init__(self, path: Path | str):
        self.session = open_session(path)
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.description = Description.of_metadata(metadata, path)
        self.classes, self.temperature = self.description.classes, self.description.temperature

    def preprocess(self, image: Image.Image | Path | str) -> Array:
        """An image, or the path of one, as the ONNX file takes it: (3, H, W) in its dtype.

        Raises InputError for an image file that cannot be decoded.
        """
        how = self.description.preprocessing
        found = upright(image)[0] if isinstance(image, Image.Image) else picture(image)
        if how["center"] is None:  # otherwise the ONNX file cuts the image itself
            found = fit(found, how["image_size"])
        pixels = np.asarray(found).transpose(2, 0, 1)
        return pixels if how["pixels"] == "uint8" else pixels.astype(np.float32) / 255

    def predict(
        self, images: Sequence[Image.Image | Path | str], top: int = 5
    ) -> list[list[Answer]]:
        """The `top` likeliest classes of each image, with their probabilities, likeliest first."""
        answers: list[list[Answer]] = []
        for image in images:  # one by one, since images differ in size
            _, probabilities = self.run(self.preprocess(image)[None])
            answers += best(probabilities, self.classes, top)
        return answers

    def run(self, pixels: Array) -> tuple[Array, Array]:
        """Logits and probabilities, float32 (N, C) each, of pixels (N, 3, H, W)."""
        logits, probabilities = self.session.run(
            ["logits", "probabilities"], {"pixels": np.ascontiguousarray(pixels)}
        )
        return logits, probabilities
