"""How the networks' weights begin."""

from torch import nn


def initialise_convolutions(network: nn.Module) -> None:
    """Normal weights for a ReLU after each convolution, scaled by the number of its outputs.

    He et al., "Delving Deep into Rectifiers", ICCV 2015.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
