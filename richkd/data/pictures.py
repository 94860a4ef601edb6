"""Image files as pictures in RGB; PIL and numpy alone, so that it also runs without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from richkd.base.errors import InputError, one_line

# Of the files' content, whatever their names say.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
REFUSED = ("AVIF", "ICO", "JPEG2000", "PPM")  # known, so that a line says so
MEGAPIXELS = 100  # of an image: 300 MB as RGB, about a second to decode
LONGEST = 100  # times the shorter side; resizing multiplies the pixels of a strip
# PIL would warn of images above a limit of its own. `open_image` has ours.
Image.MAX_IMAGE_PIXELS = None


def printable(path: Path | str) -> str:
    """A path in one line: bytes that are no UTF-8, and control characters, are escaped."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


@contextmanager
def open_image(file: IO[bytes]) -> Iterator[Image.Image]:
    """An image whose header is read, and no pixel yet.

    Raises InputError, whose message is the reason alone, for another format and for an image that
    is too large; and PIL's errors if the file is damaged.
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
    """How the image is turned, 1 to 8, by EXIF or else by XMP; 1 is upright."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image, or the first of its frames, upright and in RGB; and whether it is transparent.

    What is transparent lies on white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey: PIL would make 256 and above white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB"), True
    return image.convert("RGB"), False


def picture(path: Path | str) -> Image.Image:
    """An image file decoded, as `upright` has it.

    Raises InputError for a file that is damaged, too large or of another format.
    """
    try:
        with open(path, "rb") as content, open_image(content) as image:
            return upright(image)[0]
    except Exception as error:  # PIL's error depends on where the file is broken
        raise undecodable(path, error) from None


def undecodable(path: Path | str, error: Exception) -> InputError:
    """What to raise for an image file that cannot be decoded, for whatever reason."""
    reason = one_line(error) or type(error).__name__
    return InputError(f"{printable(path)} cannot be decoded: {reason}")


def fit(image: Image.Image, side: int) -> Image.Image:
    """The middle of a picture, its shorter side resized to `side` pixels; a square of that side."""
    return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
