"""torchvision's classifiers, untrained, under `torchvision/<name>` and with its parameter names."""

from difflib import get_close_matches

import torchvision
from torch import Tensor, nn

from richkd.base.errors import InputError
from richkd.models.output import ModelOutput


class Head(nn.Linear):
    """A network's last layer that hands on its input, too: the features."""

    def forward(self, features: Tensor) -> ModelOutput:
        return ModelOutput(super().forward(features), features)


def check(name: str) -> None:
    """InputError where `torchvision/<name>` is none of torchvision's classifiers."""
    short = name.removeprefix("torchvision/")
    known = torchvision.models.list_models(module=torchvision.models)
    if short not in known:
        close = ", ".join(get_close_matches(short, known, n=5, cutoff=0))
        raise InputError(f"model {name!r} is unknown: torchvision has {close} and others")


def build(name: str, num_classes: int) -> nn.Module:
    """`torchvision/<name>`; `feature_dim` is the input of the last linear layer.

    Where a dropout stands before that layer, features in training are those after it. Raises
    InputError for an unknown name and for a network whose logits are not one linear layer's.
    """
    check(name)
    short = name.removeprefix("torchvision/")
    network = torchvision.models.get_model(short, weights=None, num_classes=num_classes)
    *_, last = network.modules()
    if type(last) is not nn.Linear or getattr(network, "aux_logits", False):
        raise InputError(
            f"model {name!r} is not supported: its logits must come from one linear layer, "
            "without auxiliary classifiers"
        )
    # In place, because a wrapper would put a prefix before every parameter's name. torchvision's
    # classifiers return what their last layer does.
    last.__class__ = Head
    network.feature_dim = last.in_features
    return network
