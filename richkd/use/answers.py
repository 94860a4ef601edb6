"""A classifier's answers, and what an exported file says of its model; numpy alone."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from richkd.base.errors import InputError


class Answer(NamedTuple):
    """A class and its probability, 0 to 1."""

    name: str
    probability: float


class Description(NamedTuple):
    """What an exported file says of its model.

    `preprocessing` has `pixels` (uint8 or float32), `mean` and `std` (one number for each channel),
    `center` (how images are cut; null where they are not cut) and `image_size`, the side in pixels
    of the network's input.
    `temperature` divides the logits before the softmax. It is null where no temperature was fitted,
    which has the effect of 1. `img_size` is that for which a network of timm was made, where it is
    not timm's own. `metrics` are measured on the test images, at this temperature.
    """

    name: str
    arch: str
    classes: list[str]
    preprocessing: dict[str, Any]
    temperature: float | None
    metrics: dict[str, float]
    license: str
    provenance: dict[str, Any]
    img_size: int | None = None

    def to_metadata(self) -> dict[str, str]:
        """A text for each field, as file formats need it: fields that are no text become JSON."""
        return {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in self._asdict().items()
        }

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str], path: object) -> "Description":
        """The description in the metadata of the file `path`; InputError without a whole one."""
        kinds = cls.__annotations__
        try:
            values: dict[str, Any] = {
                key: metadata[key] if kind is str else json.loads(metadata[key])
                for key, kind in kinds.items()
            }
            return cls(**values)
        except (KeyError, ValueError):
            raise InputError(
                f"{path} has no description of its model: must be written by "
                "`python -m richkd export`"
            ) from None


def best(
    probabilities: npt.NDArray[np.floating], classes: Sequence[str], top: int
) -> list[list[Answer]]:
    """The `top` likeliest classes of each row of probabilities (N, C), the likeliest first."""
    orders = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        [Answer(classes[i], float(row[i])) for i in order]
        for row, order in zip(probabilities, orders)
    ]
