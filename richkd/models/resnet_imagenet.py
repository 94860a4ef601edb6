"""The ImageNet ResNets (He et al., CVPR 2016, section 4.1) for small images.

Four stages of widths 64, 128, 256, 512; the stem is a 3x3 convolution without stride or max pool.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from richkd.models.initialise import initialise_convolutions
from richkd.models.output import ModelOutput


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A projection where the shape changes, otherwise the identity."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; returns `expansion` times `width` channels."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x), inplace=True)


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """`blocks` are the numbers of blocks in the four stages."""

    stages = ("layer1", "layer2", "layer3", "layer4")
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, num_classes: int, block: Block, blocks: tuple[int, int, int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for number, (width, count) in enumerate(
            zip((64, 128, 256, 512), blocks, strict=True), start=1
        ):
            stage = []
            for index in range(count):
                stage.append(block(inputs, width, stride=2 if number > 1 and index == 0 else 1))
                inputs = width * block.expansion
            setattr(self, f"layer{number}", nn.Sequential(*stage))
        self.feature_dim = inputs
        self.linear = nn.Linear(inputs, num_classes)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> ModelOutput:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        features = self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))
        return ModelOutput(self.linear(features), features)


BLOCKS: dict[str, tuple[Block, tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def build(name: str, num_classes: int) -> ResNet:
    """`resnet18` or `resnet50`."""
    return ResNet(num_classes, *BLOCKS[name])
