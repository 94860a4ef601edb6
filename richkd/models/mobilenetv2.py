"""MobileNetV2 at half width for small images (Sandler et al., CVPR 2018).

A student of contrastive representation distillation (Tian et al., ICLR 2020). Three things differ
from the paper's network: the second group keeps the resolution, the first block has an expansion
layer, too, and activations are ReLU, not ReLU6.
"""

from torch import Tensor, nn

from richkd.models.initialise import initialise_convolutions
from richkd.models.output import ModelOutput

WIDTH = 0.5
# For each group: expansion, channels at width 1, number of blocks, stride of the first block.
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution that keeps the size at stride 1, and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """1x1 convolution to `expansion` times the channels, 3x3 of each channel, 1x1 to `outputs`."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *conv_bn(inputs, hidden, 1),
            nn.ReLU(inplace=True),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU(inplace=True),
            *conv_bn(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """A stem of stride 2, the groups, a 1x1 convolution, a mean over positions, a linear layer."""

    stages = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")  # as in the published code

    def __init__(self, num_classes: int):
        super().__init__()
        inputs = int(32 * WIDTH)
        self.conv1 = nn.Sequential(*conv_bn(3, inputs, 3, stride=2), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential()
        for expansion, channels, blocks, stride in GROUPS:
            outputs = int(channels * WIDTH)
            group = [InvertedResidual(inputs, outputs, stride, expansion)]
            group += [InvertedResidual(outputs, outputs, 1, expansion) for _ in range(blocks - 1)]
            self.blocks.append(nn.Sequential(*group))
            inputs = outputs
        self.feature_dim = 1280  # at every width up to 1, as in the paper
        self.conv2 = nn.Sequential(*conv_bn(inputs, self.feature_dim, 1), nn.ReLU(inplace=True))
        linear = nn.Linear(self.feature_dim, num_classes)
        self.classifier = nn.Sequential(linear)
        initialise_convolutions(self)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> ModelOutput:
        features = self.conv2(self.blocks(self.conv1(x))).mean((2, 3))
        return ModelOutput(self.classifier(features), features)


def build(name: str, num_classes: int) -> MobileNetV2:
    """`mobilenetv2`."""
    return MobileNetV2(num_classes)
