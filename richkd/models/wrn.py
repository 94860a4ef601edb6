"""Wide residual networks for small images (Zagoruyko and Komodakis, BMVC 2016).

`wrn_<depth>_<width>`: three stages of pre-activation blocks, `width` times the channels 16, 32, 64.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from richkd.models.initialise import initialise_convolutions
from richkd.models.output import ModelOutput


class Block(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x), inplace=True)
        # A projection takes the input after the ReLU, the identity takes the input as it is.
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))


class Stage(nn.Module):
    """The blocks are called `layer` because the published checkpoints call them so."""

    def __init__(self, inputs: int, outputs: int, stride: int, blocks: int):
        super().__init__()
        rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Depth 6n + 4. The maps of the stages are those before the last batch norm and ReLU."""

    stages = ("block1", "block2", "block3")

    def __init__(self, num_classes: int, depth: int, width: int):
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * width, 1, blocks)
        self.block2 = Stage(16 * width, 32 * width, 2, blocks)
        self.block3 = Stage(32 * width, 64 * width, 2, blocks)
        self.feature_dim = 64 * width
        self.bn1 = nn.BatchNorm2d(self.feature_dim)
        self.fc = nn.Linear(self.feature_dim, num_classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> ModelOutput:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        features = F.relu(self.bn1(x), inplace=True).mean((2, 3))
        return ModelOutput(self.fc(features), features)


def build(name: str, num_classes: int) -> WideResNet:
    """`wrn_<depth>_<width>`."""
    _, depth, width = name.split("_")
    return WideResNet(num_classes, int(depth), int(width))
