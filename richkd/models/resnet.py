"""ResNets for small images: three stages of basic blocks (He et al., CVPR 2016, section 4.2).

`resnet8` to `resnet110` have the paper's widths 16, 16, 32, 64 (stem, then the three stages).
The `x4` models are those of contrastive representation distillation (Tian et al., ICLR 2020),
widths 32, 64, 128, 256; `resnet8x2` has 16, 32, 64, 128.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from richkd.models.initialise import initialise_convolutions
from richkd.models.output import ModelOutput


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class ResNet(nn.Module):
    """Depth 6n + 2; `widths` are the channels of the stem and of the three stages."""

    stages = ("layer1", "layer2", "layer3")
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, num_classes: int, depth: int, widths: tuple[int, int, int, int]):
        super().__init__()
        stem = widths[0]
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        inputs = stem
        for number, outputs in enumerate(widths[1:], start=1):
            blocks = []
            for block in range((depth - 2) // 6):
                stride = 2 if number > 1 and block == 0 else 1
                blocks.append(BasicBlock(inputs, outputs, stride))
                inputs = outputs
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.feature_dim = inputs
        self.fc = nn.Linear(inputs, num_classes)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> ModelOutput:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        features = x.mean((2, 3))
        return ModelOutput(self.fc(features), features)


# Channels of the stem and of the three stages, by the x<width> of a name.
WIDTHS = {"": (16, 16, 32, 64), "2": (16, 32, 64, 128), "4": (32, 64, 128, 256)}


def build(name: str, num_classes: int) -> ResNet:
    """`resnet<depth>` or `resnet<depth>x<width>`."""
    depth, _, width = name.removeprefix("resnet").partition("x")
    return ResNet(num_classes, int(depth), WIDTHS[width])
