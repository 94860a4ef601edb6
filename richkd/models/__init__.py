"""Image classifiers by name, with the parameter names of the published CIFAR checkpoints."""

from torch import nn

from richkd.models import resnet
from richkd.models.output import ModelOutput

BUILDERS = {**resnet.BUILDERS}


def names() -> list[str]:
    """Every architecture that `create` knows."""
    return list(BUILDERS)


def create(name: str, num_classes: int) -> nn.Module:
    """A freshly initialised classifier.

    Called with float images (N, 3, H, W) it returns `ModelOutput(logits, features)`: logits
    (N, num_classes) and the pooled vector before the classifier (N, model.feature_dim).
    Raises ValueError for an unknown name.
    """
    if name not in BUILDERS:
        raise ValueError(f"model {name!r} is unknown: choose one of {', '.join(names())}")
    return BUILDERS[name](num_classes)
