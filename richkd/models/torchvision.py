"""torchvision's classifiers, untrained, under `torchvision/<name>` and with its parameter names."""

from difflib import get_close_matches

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from richkd.base.errors import InputError
from richkd.models.output import ModelOutput

STAGES = ("layer1", "layer2", "layer3", "layer4")  # as torchvision names them in all its ResNets


class Head(nn.Linear):
    """A network's last layer, which returns its input, the features, along with the logits."""

    def forward(self, features: Tensor) -> ModelOutput:  # type: ignore[override]
        return ModelOutput(super().forward(features), features)


def check(name: str) -> None:
    """Raises InputError where torchvision has no classifier `torchvision/<name>`."""
    short = name.removeprefix("torchvision/")
    known = torchvision.models.list_models(module=torchvision.models)
    if short not in known:
        close = ", ".join(get_close_matches(short, known, n=5, cutoff=0))
        raise InputError(f"model {name!r} is unknown: torchvision has {close} and others")


def named_weights(name: str, weights: str) -> WeightsEnum:
    """torchvision's weights of its classifier `name`; InputError where one of both is unknown."""
    check(f"torchvision/{name}")
    choices = torchvision.models.get_model_weights(name)
    if weights not in choices.__members__:
        allowed = ", ".join(choices.__members__)
        raise InputError(f"teacher.weights is {weights!r}: {name} has {allowed}")
    chosen: WeightsEnum = choices[weights]
    return chosen


def build(name: str, num_classes: int) -> nn.Module:
    """`torchvision/<name>`, a name that passed `check`.

    `feature_dim` is the input of the last linear layer. Where a dropout stands before that layer,
    features in training are those after the dropout. `stages` is empty for all but ResNets. Raises
    InputError for a network whose logits do not come from one linear layer.
    """
    short = name.removeprefix("torchvision/")
    network = torchvision.models.get_model(short, weights=None, num_classes=num_classes)
    *_, last = network.modules()
    if type(last) is not nn.Linear or getattr(network, "aux_logits", False):
        raise InputError(
            f"model {name!r} is not supported: its logits must come from one linear layer, "
            "without auxiliary classifiers"
        )
    # In place, because a wrapper would put a prefix before every parameter's name. torchvision's
    # classifiers return what their last layer returns.
    last.__class__ = Head
    network.arch = name
    network.feature_dim = last.in_features
    network.stages = STAGES if all(hasattr(network, stage) for stage in STAGES) else ()
    return network
