"""Every knob of an experiment: the sections of `params.yaml`, checked."""

from richkd.params.images import (
    Cifar,
    Digits,
    DownloadedCorruptions,
    Folder,
    Folders,
    GeneratedCorruptions,
    ImageNet,
    LocalCorruptions,
    PaddedCrops,
    ResizedCrops,
    Views,
)
from richkd.params.sources import (
    CheckpointTeacher,
    Clip,
    ClipTowers,
    ClipTraining,
    MdistillerTeacher,
    Teacher,
    TorchvisionTeacher,
    TrainedClip,
    TrainedTeacher,
)
from richkd.params.students import Training
from richkd.params.whole import Calibration, Params, Runtime, load, to_dict

__all__ = [
    "Calibration",
    "CheckpointTeacher",
    "Cifar",
    "Clip",
    "ClipTowers",
    "ClipTraining",
    "Digits",
    "DownloadedCorruptions",
    "Folder",
    "Folders",
    "GeneratedCorruptions",
    "ImageNet",
    "LocalCorruptions",
    "MdistillerTeacher",
    "PaddedCrops",
    "Params",
    "ResizedCrops",
    "Runtime",
    "Teacher",
    "TorchvisionTeacher",
    "TrainedClip",
    "TrainedTeacher",
    "Training",
    "Views",
    "load",
    "to_dict",
]
