"""Quantise an exported ONNX file to 8 bits, and measure what that costs in accuracy."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from richkd.base.files import replacing
from richkd.data.dataset import Manifest, Split, load_split
from richkd.use.describe import figures
from richkd.use.export import BATCHES, latency, pixel_batches, spread
from richkd.use.onnx_file import OnnxStudent

Array = npt.NDArray[Any]

CALIBRATION = 512  # training images that the ranges of activations come from


def quantize(path: Path, data: Path) -> Path:
    """Write `<name>-int8.onnx` beside an exported file and print both files' figures.

    `data` is the folder of the data set.

    Static quantisation of convolutions and linear layers, with a scale for each output channel of
    the weights and ranges of activations from training images (Jacob et al., "Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). Cut,
    normalisation, logits and softmax stay in float32. Weights use 7 of their 8 bits, because sums
    of 8-bit products overflow on CPUs without VNNI.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    exported = OnnxStudent(path)
    output = path.with_name(f"{path.stem}-int8.onnx")
    training = load_split(data / "train.safetensors")
    pixels = exported.description.preprocessing["pixels"]
    batches = pixel_batches(training, spread(training, CALIBRATION), pixels, "calibration")
    with without_advice(), replacing(output) as part:
        quantize_static(
            path,
            part,
            Reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_exclude=before_the_network(path),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
    print(compare([path, output], load_split(data / "test.safetensors")))
    return output


@contextmanager
def without_advice() -> Iterator[None]:
    """In the block, onnxruntime does not advise a preparation that torch's exporter has done."""

    def other(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    logging.getLogger().addFilter(other)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(other)


class Reader:
    """Training images in the form that onnxruntime asks for."""

    def __init__(self, batches: Iterator[Array]):
        self.batches = batches

    def get_next(self) -> dict[str, Array] | None:
        pixels = next(self.batches, None)
        return None if pixels is None else {"pixels": pixels}


def before_the_network(path: Path) -> list[str]:
    """The names of the nodes before the first convolution, which cut and normalise the images."""
    import onnx

    nodes = list(onnx.load(path, load_external_data=False).graph.node)
    first = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    return [node.name for node in nodes[:first]]


def compare(files: Sequence[Path], test: Split | Manifest) -> str:
    """A table with a row for each file: its size, its figures on the test images, its latency."""
    width = max(len(str(path)) for path in files)
    rows = [f"{'file':{width}}     MB  top-1, %  ECE, %     NLL   ms for 1, for 64"]
    for path in files:
        exported = OnnxStudent(path)
        found = evaluate(exported, test, path.name)
        one, many = (latency(exported.run, exported.description, n) for n in BATCHES)
        rows.append(
            f"{str(path):{width}} {path.stat().st_size / 1e6:6.2f}  {100 * found['top1']:8.2f}  "
            f"{100 * found['ece']:6.2f}  {found['nll']:6.4f}   {one:8.2f}  {many:6.2f}"
        )
    return "\n".join(rows)


def evaluate(exported: OnnxStudent, test: Split | Manifest, title: str) -> dict[str, float]:
    """The figures of an exported file on the test images, at its own temperature."""
    pixels = exported.description.preprocessing["pixels"]
    batches = pixel_batches(test, range(len(test.labels)), pixels, title)
    logits = np.concatenate([exported.run(batch)[0] for batch in batches])
    return figures(logits, test.labels, exported.temperature)
