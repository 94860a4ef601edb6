"""A small finished run: a student as if trained, its data and its saved answers."""

import json

import numpy as np
import torch

from richkd import models
from richkd.base.files import write_array
from richkd.classifiers import Loaded, save_classifier
from richkd.data.dataset import Info, Split, save_info, save_split
from richkd.data.imagesets import for_inference
from richkd.data.views import Preprocessing
from richkd.engine import predict
from richkd.use.export import Request

LOOK = Preprocessing([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
CLASSES = ["dark", "dim", "bright", "white"]
CPU = torch.device("cpu")


def save_student(path, arch="resnet8", look=LOOK, classes=CLASSES, size=8, img_size=None):
    """A network whose logits differ from image to image, as the stages save it."""
    torch.manual_seed(0)
    network = models.create(arch, len(classes), img_size)
    network(torch.rand(16, 3, size, size) * 4 - 2)  # moves the running statistics
    save_classifier(
        path,
        Loaded(network.eval(), look),
        CPU,
        arch=arch,
        num_classes=len(classes),
        classes=classes,
        image_size=size,
        **({"img_size": img_size} if img_size else {}),
        seed=0,
        params={"distill": {"variants": {path.parent.name: {"teacher": "fused"}}}},
    )
    return network


def save_run(root, split, **more):
    """`models/LF`, `data/` and `predictions/LF` below `root`."""
    network = save_student(root / "models/LF/seed0", **more)
    save_info(
        root / "data/info.json", Info(name="toy", classes=CLASSES, mean=LOOK.mean, std=LOOK.std)
    )
    for name in ("train", "validation", "test"):
        save_split(root / f"data/{name}.safetensors", split)
    if isinstance(split, Split):
        logits, _ = predict(network, for_inference(split, LOOK, CPU), 100)
        for name in ("validation", "test"):
            write_array(root / f"predictions/LF/{name}.npy", logits.numpy()[None])
    return network


def edit_record(path, **changes):
    """Set entries of a JSON record; None takes one out."""
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: x for k, x in record.items() if x is not None or k == "center"}))


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def request(root, to="onnx", **more):
    wanted = {"folder": root / "models/LF", "seed": None, "output": None, "pixels": "uint8"}
    return Request(**wanted | {"to": to} | more)
