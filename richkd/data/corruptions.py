"""The 15 + 4 common corruptions, with the constants of CIFAR-10/100-C and of ImageNet-C.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019. For quick looks and for data sets that have no published corrupted
files: where such files exist (CIFAR-100-C, ImageNet-C), they are the benchmark. CIFAR's constants
are tuned for 32x32, ImageNet's for 224x224.

With the same random draws the results are those of the published generators to within a grey level
(the tests feed CIFAR's draws to all random corruptions except impulse_noise). Three things differ.
Frost: the benchmark's photographs of ice are not shipped. Where they are given, frost is the
benchmark's. Otherwise textures are generated, about as hard for a network as the photographs.
Randomness: the random streams are our own, so a random corruption agrees with the benchmark in
distribution and not pixel by pixel. JPEG: the files of ImageNet-C were saved with quality 85 after
every corruption; the results here are not compressed.

On one thread (AMD EPYC, scipy 1.17), with less than 100 MiB beside input and output, all 95 sets of
10,000 images of 32x32 take 79 s, and all 95 of an image of 224x224 take 0.9 s. elastic_transform is
the slowest: 0.3 ms an image of 32x32; 46 ms one of 224x224, and 120 ms at severity 1, where its
Gaussian is wider than the image.

Inside this module images are float32 in grey levels, 0 to 255. The result is cut to whole levels,
as the benchmark does, and not rounded: so a pixel that a corruption leaves alone keeps its level. A
corruption takes images (n, H, W, 3), a generator and the corruption's constants, and never changes
its input. For each random quantity it draws once, image by image in order, from a stream of its
own: the corruption of image i does not depend on how many images follow.
"""

import functools
import io
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy import ndimage, sparse

from richkd.params.images import BENCHMARK, EXTRA

__all__ = ["BENCHMARK", "CONSTANTS", "CORRUPTIONS", "EXTRA", "corrupt"]

Array = npt.NDArray[Any]
Rng = np.random.Generator

PIXELS_PER_CHUNK = 2**18  # 256 images of 32x32 or 5 of 224x224: some dozen MiB of temporaries
SMALLEST_SIDE = 16


def corrupt(
    images: npt.NDArray[np.uint8],
    name: str,
    severity: int,
    seed: int,
    constants: str = "cifar",
    photographs: Sequence[npt.NDArray[np.uint8]] | None = None,
) -> npt.NDArray[np.uint8]:
    """Corrupt a batch of images; see the module's docstring for the paper and what differs.

    images: uint8 array (N, H, W, 3), RGB, H and W at least 16, N may be 0. Never changed.
    name: one of BENCHMARK or EXTRA. severity: 1 to 5. seed: a non-negative int.
    constants: "cifar", tuned for 32x32, or "imagenet", tuned for 224x224.
    photographs: what `frost` is cut from, RGB; None for generated textures.
    Returns a new uint8 array of the same shape. The same arguments give the same result, and the
    first k images come out the same whether or not more follow. For images of other sizes constants
    in pixels stay as they are; elastic_transform's are fractions of the shorter side.
    Raises ValueError for an unknown name, and for a severity, seed, constants, dtype or shape that
    is not allowed.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}, allowed: {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed!r}")
    if constants not in CONSTANTS:
        raise ValueError(f"unknown constants {constants!r}, allowed: {', '.join(CONSTANTS)}")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = getattr(images, "dtype", type(images).__name__)
        raise ValueError(f"images must be a uint8 array, got {found}")
    if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < SMALLEST_SIDE:
        raise ValueError(
            f"images must have shape (N, H, W, 3), H and W at least {SMALLEST_SIDE}, "
            f"got {images.shape}"
        )
    severity, index = int(severity), list(CORRUPTIONS).index(name)
    function, values = CORRUPTIONS[name], CONSTANTS[constants][name][severity - 1]
    if name == "frost":
        function = functools.partial(frost, photographs=photographs)
    step = max(1, PIXELS_PER_CHUNK // (images.shape[1] * images.shape[2]))
    result = np.empty(images.shape, np.uint8)
    for chunk, start in enumerate(range(0, len(images), step)):
        part = slice(start, start + step)
        rng = np.random.default_rng([seed, index, severity, chunk])
        corrupted = function(images[part].astype(np.float32), rng, *values)
        result[part] = np.clip(corrupted, 0, 255).astype(np.uint8)
    return result


# Noise


def gaussian_noise(images: Array, rng: Rng, sigma: float) -> Array:
    return images + 255 * sigma * rng.standard_normal(images.shape, np.float32)


def shot_noise(images: Array, rng: Rng, photons: float) -> Array:
    return rng.poisson(images * (photons / 255)) * (255 / photons)


def impulse_noise(images: Array, rng: Rng, amount: float) -> Array:
    """Salt and pepper, channel by channel, in equal parts."""
    u = rng.random(images.shape, np.float32)
    return np.where(u < amount / 2, 0, np.where(u < amount, 255, images))


def speckle_noise(images: Array, rng: Rng, sigma: float) -> Array:
    return images * (1 + sigma * rng.standard_normal(images.shape, np.float32))


# Blur


def blur(images: Array, sigma: float) -> Array:
    """Gaussian blur of (n, H, W, 3) images or (n, H, W) layers over H and W."""
    return ndimage.gaussian_filter(images, sigma, mode="nearest", axes=(1, 2))


def gaussian_blur(images: Array, rng: Rng, sigma: float) -> Array:
    return blur(images, sigma)


def defocus_blur(images: Array, rng: Rng, radius: float, alias: float) -> Array:
    """A disk whose rim is softened by a small Gaussian.

    The benchmark's kernel is 17x17, or as large as a disk that has no room in it. At its border the
    Gaussian mirrors, so a disk of radius 8 or 10 sums to 1.01 and brightens the image by as much.
    """
    reach = max(8, radius)
    offset = np.arange(-reach, reach + 1)
    disk = (offset[:, None] ** 2 + offset**2 <= radius**2).astype(np.float64)
    side = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    taps = np.exp(-(side**2) / (2 * alias**2))
    taps /= taps.sum()
    kernel = ndimage.correlate(disk / disk.sum(), np.outer(taps, taps), mode="mirror")
    return ndimage.correlate(images, kernel[None, :, :, None], mode="mirror")


def glass_blur(images: Array, rng: Rng, sigma: float, shift: int, passes: int) -> Array:
    """Each pixel takes a value -shift to shift - 1 rows and columns away; blur before and after.

    The benchmark walks from the last pixel to the first and means to swap two pixels, but its swap
    of array views copies. A source that lies later in the image has been overwritten already, by
    the value of its own source; so one has to follow the sources until one does not lie later. One
    gather per pass then gives what the walk gives.
    """
    images = np.floor(blur(images, sigma))
    n, height, width, _ = images.shape
    offsets = rng.integers(-shift, shift, (n, passes, 2, height - 2 * shift, width - 2 * shift))
    rows, columns = slice(shift + 1, height - shift + 1), slice(shift + 1, width - shift + 1)
    pixel = np.arange(height * width)
    for k in range(passes):
        source = np.tile(pixel.reshape(height, width), (n, 1, 1))
        source[:, rows, columns] += width * offsets[:, k, 0] + offsets[:, k, 1]
        source = source.reshape(n, -1)
        last = np.maximum(source, pixel)
        while (last != (further := np.take_along_axis(last, last, 1))).any():
            last = further
        source = np.take_along_axis(source, last, 1)[..., None]
        images = np.take_along_axis(images.reshape(n, -1, 3), source, 1).reshape(images.shape)
    return blur(images, sigma)


def motion_blur(images: Array, rng: Rng, radius: int, sigma: float) -> Array:
    return directional_blur(images, rng.uniform(-45, 45, len(images)), radius, sigma)


def directional_blur(images: Array, degrees: Array, radius: int, sigma: float) -> Array:
    """ImageMagick's motion blur in whole grey levels: one-sided Gaussian taps along a line."""
    n, height, width, channels = images.shape
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2)).astype(np.float32)
    weights = weights[weights > 1e-4]  # smaller weights change no grey level
    weights /= weights.sum()
    border = len(weights)
    padded = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)), mode="edge")
    windows = sliding_window_view(padded, (height, width, channels), (1, 2, 3))[:, :, :, 0]
    angle = np.radians(degrees)
    result = np.zeros_like(images)
    for tap, weight in enumerate(weights):
        rows = border + np.ceil(tap * np.sin(angle) - 0.5).astype(int)
        columns = border + np.ceil(tap * np.cos(angle) - 0.5).astype(int)
        result += weight * windows[np.arange(n), rows, columns]
    return np.floor(result)


@functools.lru_cache(maxsize=1)
def zoom_matrix(height: int, width: int, factors: tuple[float, ...]) -> sparse.csr_array:
    """The (HW, HW) sparse matrix that magnifies an image about its centre, with bilinear sampling.

    Summed over the factors. Kept for the next chunk: at 224 it takes longer to make than to apply.
    """

    def along(size: int, factor: float) -> sparse.csr_array:
        crop = math.ceil(size / factor)
        magnified = round(crop * factor)
        position = (np.arange(size) + (magnified - size) // 2) * (crop - 1) / (magnified - 1)
        low = np.minimum(position.astype(int), crop - 2)
        weight = position - low
        low += (size - crop) // 2
        row = np.arange(size)
        entries = (
            np.concatenate([1 - weight, weight]),
            (np.tile(row, 2), np.concatenate([low, low + 1])),
        )
        return sparse.csr_array(entries, (size, size))

    magnifications = (
        sparse.kron(along(height, factor), along(width, factor), "csr").astype(np.float32)
        for factor in factors
    )
    return functools.reduce(operator.add, magnifications)


def apply_matrix(matrix: sparse.csr_array, images: Array) -> Array:
    n, height, width, channels = images.shape
    columns = images.transpose(1, 2, 0, 3).reshape(height * width, n * channels)
    return (matrix @ columns).reshape(height, width, n, channels).transpose(2, 0, 1, 3)


def zoom_blur(images: Array, rng: Rng, stop: float, step: float) -> Array:
    """The mean of the image and its magnifications by 1, 1 + step, 1 + 2 step, …: a linear map."""
    # The benchmark uses arange as well, whose rounding keeps 1.06 and 1.11 and drops 1.16.
    factors = tuple(np.arange(1, stop, step))
    total = zoom_matrix(*images.shape[1:3], factors)
    return (apply_matrix(total, images) + images) / (len(factors) + 1)


# Weather


def plasma(noise: Array, decay: float) -> Array:
    """Diamond-square fractals of (n, S, S) uniform noise in [-1, 1), S a power of two.

    They wrap around. Amplitude falls by decay² from one octave to the next, as in the benchmark.
    """
    size = noise.shape[1]
    heights = np.zeros_like(noise)
    step, amplitude = size, 1.0
    while step > 1:
        half = step // 2
        corner, middle = slice(0, None, step), slice(half, None, step)
        corners = heights[:, corner, corner]
        rows = corners + np.roll(corners, -1, 1)
        columns = corners + np.roll(corners, -1, 2)
        centres = (rows + np.roll(rows, -1, 2)) / 4 + amplitude * noise[:, middle, middle]
        heights[:, middle, middle] = centres
        across = (columns + centres + np.roll(centres, 1, 1)) / 4
        down = (rows + centres + np.roll(centres, 1, 2)) / 4
        heights[:, corner, middle] = across + amplitude * noise[:, corner, middle]
        heights[:, middle, corner] = down + amplitude * noise[:, middle, corner]
        step, amplitude = half, amplitude / decay**2
    return heights


def plasma_layers(images: Array, rng: Rng, decay: float) -> tuple[Array, Array]:
    """One fractal an image: the part of it that is as large as the image, and the whole."""
    n, height, width, _ = images.shape
    size = 2 ** math.ceil(math.log2(max(height, width)))
    whole = plasma(rng.uniform(-1, 1, (n, size, size)), decay)
    return whole[:, :height, :width], whole


def fog(images: Array, rng: Rng, amount: float, decay: float) -> Array:
    layer, whole = plasma_layers(images, rng, decay)
    low, high = whole.min((1, 2), keepdims=True), whole.max((1, 2), keepdims=True)
    brightest = images.max((1, 2, 3), keepdims=True)
    fogged = images + 255 * amount * ((layer - low) / (high - low))[..., None]
    return fogged * brightest / (brightest + 255 * amount)


def frost(
    images: Array,
    rng: Rng,
    image_weight: float,
    frost_weight: float,
    step: int,
    photographs: Sequence[Array] | None = None,
) -> Array:
    """The image under a piece of a photograph of ice, or under a generated texture.

    Of a photograph every `step`-th row and column is kept. The benchmark shrinks the photographs
    for CIFAR to a fifth by interpolation at the middle of five pixels, which is the middle pixel.
    """
    if photographs is None:
        ice = textures(images, rng, step)
    else:
        ice = pieces([x[step // 2 :: step, step // 2 :: step] for x in photographs], images, rng)
    return image_weight * images + frost_weight * ice


def pieces(photographs: Sequence[Array], images: Array, rng: Rng) -> Array:
    """A piece of a random photograph for each image, as large as the image."""
    choice_rng, row_rng, column_rng = rng.spawn(3)
    height, width = images.shape[1:3]
    choice = choice_rng.integers(len(photographs), size=len(images))
    heights, widths = np.array([x.shape[:2] for x in photographs])[choice].T
    tops = row_rng.integers(0, heights - height)
    lefts = column_rng.integers(0, widths - width)
    result = np.empty(images.shape, np.float32)
    for i, (number, top, left) in enumerate(zip(choice, tops, lefts, strict=True)):
        result[i] = photographs[number][top : top + height, left : left + width]
    return result


# Five textures, equally likely, for photographs 1 to 5 shrunk to a fifth; 2 and 3 show the same.
# Mean colour of a 32x32 piece, standard deviation of that mean between pieces, standard deviation
# within a piece of the smooth part, of the rough part, skewness. Measured on the photographs: all
# but the two parts, of which only the sum was measured. Its division was fitted until the accuracy
# of a network was that under the photographs: of two textures with the same contrast the rougher
# one does far more harm.
ICE = (
    ((76, 148, 165), (17, 9, 8), (18.5, 9, 8.5), (9.5, 9, 9), 0.4),
    ((198, 203, 212), (8.5, 9, 10), (13.5, 13.5, 14), (11.5, 11.5, 12), -1.0),
    ((198, 203, 212), (8.5, 9, 10), (13.5, 13.5, 14), (11.5, 11.5, 12), -1.0),
    ((143, 158, 171), (10, 10, 11), (18, 18, 18.5), (19, 19, 19.5), -0.15),
    ((102, 114, 126), (16, 16, 15), (26.5, 26, 25.5), (21.5, 21.5, 21), 0.4),
)


def textures(images: Array, rng: Rng, step: int) -> Array:
    """Generated ice: a fractal that stands for crystals, and grain."""
    texture_rng, level_rng, crystal_rng, grain_rng = rng.spawn(4)
    n, height, width, _ = images.shape
    texture = texture_rng.integers(len(ICE), size=n)
    mean, spread, smooth, rough, skew = (
        np.array(column, np.float32)[texture].reshape(n, 1, 1, -1)
        for column in zip(*ICE, strict=True)
    )
    colour = mean + spread * level_rng.standard_normal((n, 1, 1, 1), np.float32)
    crystals = standardised(plasma_layers(images, crystal_rng, 1.25)[0].astype(np.float32))
    grain = grain_rng.standard_normal((n, height, width), np.float32)
    if step == 1:  # In the whole photographs grains are wider than a pixel.
        grain = standardised(blur(grain, 0.65))
    relief = smooth * crystals[..., None] + rough * grain[..., None]
    contrast = np.hypot(smooth, rough)
    relief += skew / 6 * (relief**2 / contrast - contrast)
    return np.clip(colour + relief, 0, 255)


def standardised(layers: Array) -> Array:
    return (layers - layers.mean((1, 2), keepdims=True)) / layers.std((1, 2), keepdims=True)


def snow(images: Array, rng: Rng, *constants: Any) -> Array:
    """Flakes blown by the wind, on a whitened image."""
    mean, sd, zoom, threshold, radius, sigma, keep = constants
    flake_rng, angle_rng = rng.spawn(2)
    n, height, width, _ = images.shape
    flakes = mean + sd * flake_rng.standard_normal((n, height, width, 1), np.float32)
    flakes = apply_matrix(zoom_matrix(height, width, (zoom,)), flakes)
    flakes = np.where(flakes < threshold, 0, np.floor(255 * np.clip(flakes, 0, 1)))
    flakes = directional_blur(flakes, angle_rng.uniform(-135, -45, len(images)), radius, sigma)
    grey = 0.299 * images[..., :1] + 0.587 * images[..., 1:2] + 0.114 * images[..., 2:]
    whitened = np.maximum(images, 1.5 * grey + 127.5)
    return keep * images + (1 - keep) * whitened + flakes + flakes[:, ::-1, ::-1]


def spatter(images: Array, rng: Rng, *constants: Any) -> Array:
    """Drops of water on the lens or, with `mud`, of mud."""
    mean, sd, sigma, threshold, strength, mud = constants
    layer = blur(rng.normal(mean, sd, images.shape[:3]), sigma)
    if mud:
        cover = blur((layer > threshold).astype(np.float32), strength)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return images * (1 - cover) + cover * np.array([63, 42, 20], np.float32)
    # The benchmark has a byte here: after 255 the levels start again at 0.
    liquid = np.where(layer < threshold, 0, np.floor(255 * layer) % 256)
    film = liquid * emboss(liquid)
    film /= np.maximum(film.max((1, 2), keepdims=True), 1)
    return images + strength * film[..., None] * np.array([175, 238, 238], np.float32)


def emboss(liquid: Array) -> Array:
    """Light on drops: the equalised distance to their edges, embossed; (n, H, W) grey levels."""
    levels = box_blur(distance_to(edges(liquid))).astype(int)
    lamp = np.array([[[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]])
    lit = ndimage.correlate(equalised(levels, 21), lamp, mode="mirror")
    return np.round(box_blur(np.clip(lit, 0, 255)))


def distance_to(marks: Array) -> Array:
    """OpenCV's distance to the nearest mark of (n, H, W) layers, at most 20.

    It is the length of the shortest way in steps to a neighbour (1), across a corner (1.4) and of a
    chess knight (2.1969). float32 as in OpenCV: the means of these distances lie close to whole
    numbers, and are cut to whole numbers.
    """
    away = np.abs(np.arange(-2, 3))
    step = np.array([[0, 1, 2], [1, 1.4, 2.1969], [2, 2.1969, 2.8]])[away[:, None], away]
    distance = np.where(marks, np.float32(0), np.float32(20))
    while True:
        shorter = ndimage.grey_erosion(distance, structure=-step[None], mode="constant", cval=20)
        if np.array_equal(shorter, distance):
            return distance
        distance = shorter


def box_blur(layers: Array) -> Array:
    return ndimage.uniform_filter(layers, 3, mode="mirror", axes=(1, 2))


def equalised(levels: Array, count: int) -> Array:
    """Histogram equalisation of each (H, W) layer of integers below count, to 0 … 255."""
    n = len(levels)
    keys = levels + count * np.arange(n)[:, None, None]
    below = np.bincount(keys.ravel(), minlength=n * count).reshape(n, count).cumsum(1)
    lowest = np.where(below > 0, below, below[:, -1:]).min(1, keepdims=True)
    table = np.round(255 * (below - lowest) / np.maximum(below[:, -1:] - lowest, 1))
    return table.ravel()[keys]


def edges(layers: Array) -> Array:
    """Canny's edges of (n, H, W) grey layers, bool; thresholds 50 and 150 on the L1 gradient."""
    smooth, slope = np.array([[1, 2, 1]]), np.array([[-1, 0, 1]])
    dx = ndimage.correlate(layers, (smooth.T * slope)[None], mode="nearest")
    dy = ndimage.correlate(layers, (slope.T * smooth)[None], mode="nearest")
    size = np.abs(dx) + np.abs(dy)
    near = sliding_window_view(np.pad(size, ((0, 0), (1, 1), (1, 1))), (3, 3), (1, 2))
    flat = np.abs(dy) < np.abs(dx) * math.tan(math.pi / 8)
    steep = np.abs(dx) < np.abs(dy) * math.tan(math.pi / 8)
    crest = np.select(
        [flat, steep, dx * dy >= 0],
        [
            (size > near[..., 1, 0]) & (size >= near[..., 1, 2]),
            (size > near[..., 0, 1]) & (size >= near[..., 2, 1]),
            (size > near[..., 0, 0]) & (size > near[..., 2, 2]),
        ],
        (size > near[..., 0, 2]) & (size > near[..., 2, 0]),
    )
    within_image = np.ones((1, 3, 3), bool)
    return ndimage.binary_propagation(crest & (size > 150), within_image, crest & (size > 50))


# Colour, geometry and compression


def brightness(images: Array, rng: Rng, amount: float) -> Array:
    """Adds to V of HSV. Hue and saturation stay, so the channels keep their ratios."""
    value = images.max(3, keepdims=True)
    brighter = np.minimum(value + 255 * amount, 255)
    return np.where(value > 0, images / np.maximum(value, 1), 1) * brighter


def saturate(images: Array, rng: Rng, factor: float, amount: float) -> Array:
    """Scales and shifts S of HSV. The channels' distances from V change in proportion."""
    value = images.max(3, keepdims=True)
    chroma = value - images.min(3, keepdims=True)
    saturation = chroma / np.maximum(value, 1)
    changed = np.clip(saturation * factor + amount, 0, 1)
    red_hue = np.array([0, 1, 1], np.float32)  # grey has no hue; by convention it counts as red
    direction = np.where(chroma > 0, (value - images) / np.maximum(chroma, 1), red_hue)
    return value * (1 - changed * direction)


def contrast(images: Array, rng: Rng, factor: float) -> Array:
    mean = images.mean((1, 2), keepdims=True, dtype=np.float64)
    return (images - mean) * factor + mean


def elastic_transform(images: Array, rng: Rng, alpha: float, sigma: float, affine: float) -> Array:
    """A random affine map, then smooth random displacements.

    alpha, sigma and affine are fractions of the shorter side.
    """
    affine_rng, displacement_rng = rng.spawn(2)
    n, height, width, _ = images.shape
    side = min(height, width)
    corners = np.array([height, width]) // 2 + side // 3 * np.array([[1, 1], [-1, 1], [-1, -1]])
    moved = corners + affine_rng.uniform(-affine * side, affine * side, (n, 3, 2))
    # The map from the moved corners to the original ones: it gives the source of an output pixel.
    matrix = np.linalg.solve(
        np.concatenate([moved, np.ones((n, 3, 1))], 2), corners.astype(float)[None]
    )
    along_y, along_x, origin = matrix.transpose(1, 2, 0)[..., None, None]
    y, x = np.mgrid[:height, :width]
    rows, columns = y * along_y + x * along_x + origin
    warped = bilinear(images, rows, columns, mirror)

    shift = displacement_rng.uniform(-1, 1, (n, 2, height, width))
    shift = ndimage.gaussian_filter(shift, sigma * side, mode="reflect", truncate=3, axes=(2, 3))
    shift *= alpha * side
    return bilinear(warped, y + shift[:, 0], x + shift[:, 1], reflect)


def mirror(index: Array, size: int) -> Array:
    """Folds an index at the centre of the border pixels: c b | a b c | b a."""
    return size - 1 - np.abs(index % (2 * size - 2) - (size - 1))


def reflect(index: Array, size: int) -> Array:
    """Folds an index at the outer edge of the border pixels: b a | a b c | c b."""
    index = index % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)


def bilinear(images: Array, y: Array, x: Array, fold: Callable[[Array, int], Array]) -> Array:
    """Samples image i of (n, H, W, 3) at the points y[i], x[i], each (H, W)."""
    n, height, width, _ = images.shape
    image = np.arange(n)[:, None, None]
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = (y - top).astype(np.float32)[..., None], (x - left).astype(np.float32)[..., None]
    rows = fold(top, height), fold(top + 1, height)
    a, b = fold(left, width), fold(left + 1, width)
    upper, lower = (
        images[image, row, a] * (1 - right) + images[image, row, b] * right for row in rows
    )
    return upper * (1 - down) + lower * down


def pixelate(images: Array, rng: Rng, scale: float) -> Array:
    height, width = images.shape[1:3]
    small = int(width * scale), int(height * scale)
    box = Image.Resampling.BOX
    return through_pil(images, lambda image: image.resize(small, box).resize((width, height), box))


def jpeg_compression(images: Array, rng: Rng, quality: int) -> Array:
    def compress(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return through_pil(images, compress)


def through_pil(images: Array, function: Callable[[Image.Image], Image.Image]) -> Array:
    return np.stack(
        [np.asarray(function(Image.fromarray(image))) for image in images.astype(np.uint8)]
    )


# By name, in the order of BENCHMARK + EXTRA. A position in this order is a part of a stream's seed.
CORRUPTIONS: dict[str, Callable[..., Array]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "spatter": spatter,
    "saturate": saturate,
}

# For severities 1 to 5: the arguments of a corruption after the images and the generator.
CONSTANTS: dict[str, dict[str, list[tuple[Any, ...]]]] = {
    "cifar": {
        "gaussian_noise": [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)],
        "shot_noise": [(500,), (250,), (100,), (75,), (50,)],
        "impulse_noise": [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)],
        "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        "zoom_blur": [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
        "snow": [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        "frost": [(1, 0.2, 5), (1, 0.3, 5), (0.9, 0.4, 5), (0.85, 0.4, 5), (0.75, 0.45, 5)],
        "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        "brightness": [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)],
        "contrast": [(0.75,), (0.5,), (0.4,), (0.3,), (0.15,)],
        "elastic_transform": [
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ],
        "pixelate": [(0.95,), (0.9,), (0.85,), (0.75,), (0.65,)],
        "jpeg_compression": [(80,), (65,), (58,), (50,), (40,)],
        "speckle_noise": [(0.06,), (0.1,), (0.12,), (0.16,), (0.2,)],
        "gaussian_blur": [(0.4,), (0.6,), (0.7,), (0.8,), (1,)],
        "spatter": [
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ],
        "saturate": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
    },
    "imagenet": {
        "gaussian_noise": [(0.08,), (0.12,), (0.18,), (0.26,), (0.38,)],
        "shot_noise": [(60,), (25,), (12,), (5,), (3,)],
        "impulse_noise": [(0.03,), (0.06,), (0.09,), (0.17,), (0.27,)],
        "defocus_blur": [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        "glass_blur": [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
        "motion_blur": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
        "zoom_blur": [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
        "snow": [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
        "frost": [(1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)],
        "fog": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        "brightness": [(0.1,), (0.2,), (0.3,), (0.4,), (0.5,)],
        "contrast": [(0.4,), (0.3,), (0.2,), (0.1,), (0.05,)],
        # The benchmark takes fractions of 244 where 224 is meant: we keep its pixels.
        "elastic_transform": [
            (488 / 224, 170.8 / 224, 24.4 / 224),
            (488 / 224, 19.52 / 224, 48.8 / 224),
            (12.2 / 224, 2.44 / 224, 4.88 / 224),
            (17.08 / 224, 2.44 / 224, 4.88 / 224),
            (29.28 / 224, 2.44 / 224, 4.88 / 224),
        ],
        "pixelate": [(0.6,), (0.5,), (0.4,), (0.3,), (0.25,)],
        "jpeg_compression": [(25,), (18,), (15,), (10,), (7,)],
        "speckle_noise": [(0.15,), (0.2,), (0.35,), (0.45,), (0.6,)],
        "gaussian_blur": [(1,), (2,), (3,), (4,), (6,)],
        "spatter": [
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ],
        "saturate": [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
    },
}
