"""Image files as pictures in RGB; PIL and numpy alone, so that it also runs without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from richkd.base.errors import InputError, one_line

# By a file's content, whatever its name says.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
REFUSED = ("AVIF", "ICO", "JPEG2000", "PPM")  # recognised only to name them in the error
MEGAPIXELS = 100  # of an image: 300 MB as RGB, about a second to decode
LONGEST = 100  # longer side by shorter side: a resized strip could have far more pixels
# Switches PIL's own limit off, of which PIL would only warn. `open_image` checks ours.
Image.MAX_IMAGE_PIXELS = None


def printable(path: Path | str) -> str:
    """A path in one line: control characters and bytes that are not UTF-8 are escaped."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


@contextmanager
def open_image(file: IO[bytes]) -> Iterator[Image.Image]:
    """Open an image: its header is read, its pixels are not yet.

    Raises InputError for an image of another format, for one that is too large, and for pixels of
    32 bits; the message is the reason alone. Raises PIL's errors if the file is damaged.
    """
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        with Image.open(file, formats=REFUSED) as other:
            raise InputError(f"it is {other.format}: must be {', '.join(FORMATS)}") from None
    with image:
        short, long = sorted(image.size)
        size = f"it has {image.width:,} x {image.height:,} pixels"
        if short * long > MEGAPIXELS * 10**6:
            raise InputError(f"{size}: at most {MEGAPIXELS} megapixels are allowed")
        if long > LONGEST * short:
            raise InputError(f"{size}: one side must be at most {LONGEST} times the other")
        if image.mode == "F" or image.mode == "I" and image.format == "TIFF":
            raise InputError("its pixels have 32 bits a channel: must be 8 or 16")
        yield image


def orientation(image: Image.Image) -> int:
    """How the image is turned, 1 to 8, from EXIF or otherwise from XMP; 1 is upright."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image, or the first of its frames, upright and in RGB; and whether it is transparent.

    Transparent parts are laid on white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # grey of 16 bits: PIL would turn 256 and above into white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB"), True
    return image.convert("RGB"), False


def picture(path: Path | str) -> Image.Image:
    """The image in a file, decoded, upright and in RGB as by `upright`.

    Raises InputError for a file that is damaged, too large or of another format.
    """
    try:
        with open(path, "rb") as content, open_image(content) as image:
            return upright(image)[0]
    except Exception as error:  # PIL's error depends on where the file is broken
        raise undecodable(path, error) from None


def undecodable(path: Path | str, error: Exception) -> InputError:
    """The error to raise for an image file that cannot be decoded."""
    reason = one_line(error) or type(error).__name__
    return InputError(f"{printable(path)} cannot be decoded: {reason}")


def fit(image: Image.Image, side: int) -> Image.Image:
    """The middle square of an image, resized to `side` x `side` pixels."""
    return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
