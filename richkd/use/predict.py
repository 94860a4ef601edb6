"""A classifier's answers for image files, as a table or as JSON; without torch for ONNX files."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from richkd.base.errors import InputError, one_line
from richkd.data.image_names import SUFFIXES, hidden
from richkd.data.pictures import printable
from richkd.use.answers import Answer

if TYPE_CHECKING:
    from richkd.use.onnx_file import OnnxStudent
    from richkd.use.student import Student

EVERY = 10  # images between two updates of the progress line


def open_model(model: str, seed: int | None) -> "Student | OnnxStudent":
    """The classifier in an exported file, or in a folder such as `models/LF`."""
    if model.endswith(".onnx"):
        from richkd.use.onnx_file import OnnxStudent

        return OnnxStudent(model)
    try:
        from richkd.use.student import load  # imports torch
    except ModuleNotFoundError as error:
        raise InputError(
            f"{model} needs {error.name}: install RichKD, or export the model to ONNX elsewhere"
        ) from None
    return load(model, seed)


def image_files(names: Sequence[str]) -> Iterator[Path]:
    """The files of `names` as they are, and all images in and below the folders of `names`.

    Hidden files, and those that systems put beside others, are passed over. Prints how many files
    of a folder are no images by their suffix.
    """
    for path in map(Path, names):
        if not path.is_dir():
            yield path
            continue
        files = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file() and not any(map(hidden, file.relative_to(path).parts))
        ]
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        if others := len(files) - len(images):
            print(
                f"{printable(path)}: {others} files are not {', '.join(SUFFIXES)}", file=sys.stderr
            )
        yield from images


def predict(model: str, names: Sequence[str], *, seed: int | None, as_json: bool) -> bool:
    """Print the five likeliest classes of each image; returns whether all images were read.

    An image that cannot be read gives one line on stderr; the other images are still answered.
    Raises InputError where the model cannot be read, or where there is no image.
    """
    files = list(dict.fromkeys(image_files(names)))  # each once
    if not files:
        raise InputError(f"{', '.join(names)} holds no image: must be {', '.join(SUFFIXES)}")
    opened = open_model(model, seed)
    answers: dict[Path, list[Answer]] = {}
    errors = []
    for path in progress(files):
        try:
            if not path.exists():
                raise InputError(f"{printable(path)} is not there")
            (answers[path],) = opened.predict([path])
        except InputError as error:
            errors.append(f"error: {one_line(error)}")
    if opened.temperature is None:
        errors.append(f"{model}: probabilities are not calibrated, since no temperature was fitted")
    for line in errors:
        print(line, file=sys.stderr)
    if as_json:
        print(to_json(answers))
    elif answers:
        print(to_table(answers))
    return len(answers) == len(files)


def progress(files: Sequence[Path]) -> Iterator[Path]:
    """Yield the files; on a terminal show how many are done, how fast, and how long it still takes.

    Not tqdm, which need not be installed where an ONNX file is used.
    """
    shown, start = sys.stderr.isatty(), time.monotonic()
    for done, path in enumerate(files):
        if shown and done and done % EVERY == 0:
            rate = done / (time.monotonic() - start)
            left = (len(files) - done) / rate
            text = f"{done}/{len(files)} images, {rate:.1f} a second, {left:.0f} s left"
            print(f"\r{text:70}", end="", file=sys.stderr)
        yield path
    if shown and len(files) > EVERY:
        print(f"\r{'':70}\r", end="", file=sys.stderr)


def to_json(answers: Mapping[Path, Sequence[Answer]]) -> str:
    """A JSON list with one entry for each image."""
    entries = [
        {
            "image": printable(path),
            "classes": [{"class": x.name, "probability": x.probability} for x in best],
        }
        for path, best in answers.items()
    ]
    return json.dumps(entries, indent=2)


def to_table(answers: Mapping[Path, Sequence[Answer]]) -> str:
    """A row for each image and class; an image's name stands only in its first row."""
    width = max(map(len, ["image", *map(printable, answers)]))
    rows = [f"{'image':{width}}  probability  class"]
    for path, best in answers.items():
        names = [printable(path)] + [""] * (len(best) - 1)
        rows += [
            f"{name:{width}}  {100 * answer.probability:9.2f} %  {answer.name}"
            for name, answer in zip(names, best)
        ]
    return "\n".join(rows)
