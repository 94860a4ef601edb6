"""MobileNet, the first one, at full width for ImageNet (Howard et al., 2017).

The student of the distillation literature on ImageNet, with a ResNet-50 as its teacher. The
network and the names of its parameters are mdistiller's, but its pooling takes every image size.
"""

from torch import Tensor, nn

from richkd.models.mobilenetv2 import conv_bn
from richkd.models.output import ModelOutput

# Channels and stride of each depthwise separable block.
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A depthwise separable block: a 3x3 convolution of each channel, then a 1x1 convolution."""
    return nn.Sequential(
        *conv_bn(inputs, inputs, 3, stride, groups=inputs),
        nn.ReLU(inplace=True),
        *conv_bn(inputs, outputs, 1),
        nn.ReLU(inplace=True),
    )


class MobileNetV1(nn.Module):
    """`BLOCKS`, a mean over positions, a linear layer."""

    stages = ("model.3", "model.5", "model.11", "model.13")  # as in mdistiller

    def __init__(self, num_classes: int):
        super().__init__()
        channels = 32
        first = nn.Sequential(*conv_bn(3, channels, 3, stride=2), nn.ReLU(inplace=True))
        self.model = nn.Sequential(first)
        for outputs, stride in BLOCKS:
            self.model.append(block(channels, outputs, stride))
            channels = outputs
        self.feature_dim = channels
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> ModelOutput:
        features = self.model(x).mean((2, 3))
        return ModelOutput(self.fc(features), features)


def build(name: str, num_classes: int) -> MobileNetV1:
    """`mobilenetv1`."""
    return MobileNetV1(num_classes)
