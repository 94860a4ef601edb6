"""A classifier in a file for other programs: ONNX, safetensors, or torch.export's pt2.

The file is checked before it appears: its answers to test images must be the network's own.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from richkd.base.errors import InputError, one_line
from richkd.base.files import replacing
from richkd.data.dataset import Manifest, Split, load_split
from richkd.data.imagesets import cpus, cut_center
from richkd.data.pictures import picture
from richkd.data.resident import normalise
from richkd.engine import predict
from richkd.use import card
from richkd.use.answers import Description
from richkd.use.describe import describe
from richkd.use.onnx_file import OnnxStudent
from richkd.use.packaged import PIXELS, Packaged
from richkd.use.student import (
    AT_ONCE,
    Student,
    find,
    load,
    load_exported,
    project,
)

Array = npt.NDArray[Any]
Runner = Callable[[Array], tuple[Array, Array]]  # pixels (N, 3, H, W) to logits and probabilities

OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHECKED = 256  # test images that `check` runs the file on
LARGEST = 1e-4  # difference of a logit or a probability that `check` allows
BATCHES = (1, 64)  # images in the batches whose latency is measured
RUNS, SECONDS = 30, 5.0  # a latency is measured until one of these two is reached


class Request(NamedTuple):
    """What to export, and how.

    folder, seed: the model, such as `models/LF` and 0; with None the folder's first seed.
    to: onnx, safetensors or pt2.
    output: the file to write; for safetensors the folder that gets `model.safetensors` and a model
        card. None: below `export/`.
    pixels: the dtype of the file's input, uint8 or float32.
    """

    folder: Path
    seed: int | None
    to: str
    output: Path | None
    pixels: str


def export(request: Request) -> Path:
    """Write the file, check it on test images, print its size and latency; returns its path.

    Raises InputError, and leaves no file, where the file does not answer as the network does.
    """
    if request.to == "onnx":
        check_packages()
    path = find(request.folder, request.seed)
    student = load(request.folder, request.seed)
    about, data = describe(path, student, request.pixels), project(path) / "data"
    name = f"{path.parent.name}-{path.name}"
    output = output_file(request, name)
    packaged = Packaged(student.model, student.preprocessing, student.temperature).eval()
    with replacing(output) as part:
        write(request.to, packaged, about, part)
        try:
            runner = open_runner(request.to, part)
            differs = check(runner, student, load_split(data / "test.safetensors"), about, output)
        except RuntimeError as error:  # else `replacing` would take it for an error of writing
            reason = one_line(error, 150)
            raise InputError(f"{output}: the exported model does not run: {reason}") from error
    if request.to == "safetensors":
        with replacing(output.with_name("README.md")) as part:
            part.write_text(card.render(about, output.name))
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, {differs}")
    runner = open_runner(request.to, output)
    one, many = (latency(runner, about, images) for images in BATCHES)
    print(f"median latency on {cpus()} CPUs, ms: {one:.2f} for 1 image, {many:.2f} for 64")
    return output


def output_file(request: Request, name: str) -> Path:
    """The file to write; InputError for a wrong suffix, or if another README would be replaced."""
    if request.to != "safetensors":
        output = request.output or Path(f"export/{name}.{request.to}")
        if output.suffix != f".{request.to}":
            raise InputError(f"--output is {output}: must end in .{request.to}")
        return output
    folder = request.output or Path("export", name)
    if (folder / "README.md").exists() and not (folder / "model.safetensors").exists():
        raise InputError(f"{folder}/README.md is not a model card: name another folder")
    return folder / "model.safetensors"


def check_packages() -> None:
    """InputError where one of the packages that write ONNX is missing."""
    if missing := [name for name in PACKAGES if not find_spec(name)]:
        raise InputError(f"export needs {', '.join(missing)}: pip install -e '.[export]'")


# --- writing and running ------------------------------------------------------------------------


def write(to: str, packaged: Packaged, about: Description, path: Path) -> None:
    """Write the file in the format `to`; InputError where a network cannot be exported."""
    metadata = about.to_metadata()
    if to == "safetensors":
        state = packaged.model.state_dict()
        save_file({name: x.contiguous() for name, x in state.items()}, path, metadata)
        return
    try:
        program = trace(packaged, about)
        if to == "pt2":
            with open(path, "wb") as file:
                torch.export.save(program, file, extra_files=metadata)
            return
        names = ["logits", "probabilities"]
        written = torch.onnx.export(
            program, input_names=["pixels"], output_names=names, opset_version=OPSET, verbose=False
        )
    except Exception as error:  # its kind depends on which part of the network is unknown
        raise InputError(f"{about.arch} cannot be exported: {one_line(error, 150)}") from error
    assert written is not None
    written.model.metadata_props.update(metadata)
    written.save(path)


def trace(packaged: Packaged, about: Description) -> torch.export.ExportedProgram:
    """The network as a program of torch.export, for batches of any length.

    If the network's images are cut, the program takes images of any size; otherwise only images of
    the size that the network was trained on.
    """
    center = about.preprocessing["center"]
    side = center["resize"] + 2 if center else about.preprocessing["image_size"]
    # torch.export takes equal sizes for the same size, so height and width differ from each other
    # and from the sizes of the cut.
    shape = (2, 3, side, side + 3 if center else side)
    example = torch.zeros(shape, dtype=PIXELS[about.preprocessing["pixels"]])
    free = {0: torch.export.Dim.DYNAMIC}
    if center:
        free |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    return torch.export.export(packaged, (example,), dynamic_shapes={"pixels": free}, strict=False)


def open_runner(to: str, path: Path) -> Runner:
    """Read the file at `path` again: a function from pixels (N, 3, H, W) to its answers."""
    if to == "onnx":
        return OnnxStudent(path).run
    module: nn.Module
    if to == "pt2":
        with open(path, "rb") as file:
            module = torch.export.load(file).module()
    else:
        student = load_exported(path)
        module = Packaged(student.model, student.preprocessing, student.temperature).eval()

    @torch.inference_mode()
    def run(pixels: Array) -> tuple[Array, Array]:
        logits, probabilities = module(torch.from_numpy(pixels))
        return logits.numpy(), probabilities.numpy()

    return run


def latency(run: Runner, about: Description, images: int) -> float:
    """The median time of a batch of that many images, in milliseconds."""
    how = about.preprocessing
    side = how["center"]["resize"] if how["center"] else how["image_size"]
    pixels = np.zeros((images, 3, side, side), how["pixels"])
    run(pixels)  # the first run allocates memory
    times: list[float] = []
    while len(times) < RUNS and sum(times) < SECONDS:
        start = time.perf_counter()
        run(pixels)
        times.append(time.perf_counter() - start)
    return 1000 * median(times)


# --- the check ----------------------------------------------------------------------------------


def pixel_batches(
    split: Split | Manifest, ids: Sequence[int], pixels: str, title: str
) -> Iterator[Array]:
    """The images `ids` as batches (n, 3, H, W) in the dtype `pixels`, under a progress bar.

    Image files differ in size, so each is a batch of its own.
    """
    if isinstance(split, Manifest):
        files = (Path(split.root, split.paths[i]) for i in ids)
        batches = (np.asarray(picture(file))[None] for file in files)
    else:
        parts = (ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE))
        batches = (split.images[list(part)] for part in parts)
    with tqdm(total=len(ids), desc=title, unit="image", leave=False) as bar:
        for images in batches:
            levels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
            yield levels if pixels == "uint8" else levels.astype(np.float32) / 255
            bar.update(len(images))


def spread(split: Split | Manifest, count: int) -> list[int]:
    """The numbers of `count` images, evenly spread over a split; of all if it has fewer."""
    every = len(split.labels)
    return np.linspace(0, every - 1, min(count, every)).round().astype(int).tolist()


def check(
    run: Runner, student: Student, test: Split | Manifest, about: Description, output: Path
) -> str:
    """Run the file on test images beside the network; returns the largest difference in words.

    The network gets its images as the pipeline cuts and normalises them, but pixels keep their
    fractions after the cut, as in the file. Raises InputError where a logit or a probability
    differs by more than `LARGEST`, or where the likeliest class is another one.
    """
    ids = spread(test, CHECKED)
    center = student.preprocessing.center
    largest, others = 0.0, 0
    for pixels in pixel_batches(test, ids, about.preprocessing["pixels"], "check"):
        levels = torch.from_numpy(pixels).float()
        if pixels.dtype == np.uint8:
            levels /= 255
        cut = cut_center(levels, center).clamp(0, 1) if center else levels
        expected, _ = predict(student.model, normalise(cut * 255, student.preprocessing), AT_ONCE)
        probabilities = torch.softmax(expected / (student.temperature or 1.0), 1)
        for found, right in zip(run(pixels), (expected.numpy(), probabilities.numpy())):
            difference = np.abs(found - right).max()
            # NaN would be lost in a comparison with `max`.
            largest = max(largest, difference if np.isfinite(difference) else np.inf)
            others += int((found.argmax(1) != right.argmax(1)).sum())
    if largest > LARGEST or others:
        raise InputError(
            f"{output} is not kept: on {len(ids)} test images it differs from the network by "
            f"{largest:.2g}, at most {LARGEST:g} is allowed, and {others} answers are others"
        )
    return f"at most {largest:.1g} from the network on {len(ids)} test images"
