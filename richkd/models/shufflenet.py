"""ShuffleNets for small images: version 1 (Zhang et al., CVPR 2018), 2 (Ma et al., ECCV 2018).

Students of contrastive representation distillation (Tian et al., ICLR 2020): a 1x1 stem without
stride or pooling, then three stages of 4, 8 and 4 units. Version 1 has three groups, version 2 has
width 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from richkd.models.output import ModelOutput

STEM = 24
GROUPS = 3


def pointwise(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)


def depthwise(channels: int, stride: int) -> nn.Conv2d:
    """A 3x3 convolution of each channel."""
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


class Unit1(nn.Module):
    """Version 1's unit; with stride 2 it halves the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride = stride
        if stride == 2:
            outputs -= inputs  # the pooled input is concatenated
        hidden = outputs // 4
        # The paper does not group the first layer, which has few channels.
        self.groups = 1 if inputs == STEM else GROUPS
        self.conv1 = pointwise(inputs, hidden, self.groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = depthwise(hidden, stride)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = pointwise(hidden, outputs, GROUPS)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.channel_shuffle(y, self.groups)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)  # the paper has no ReLU here
        y = self.bn3(self.conv3(y))
        if self.stride == 2:
            return F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, padding=1)], 1), inplace=True)
        return F.relu(y + x, inplace=True)


class Unit2(nn.Module):
    """Version 2's unit: half of the channels pass unchanged."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = depthwise(half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        right = F.relu(self.bn1(self.conv1(right)), inplace=True)
        right = self.bn2(self.conv2(right))
        right = F.relu(self.bn3(self.conv3(right)), inplace=True)
        return F.channel_shuffle(torch.cat([left, right], 1), 2)


class DownUnit2(nn.Module):
    """Version 2's unit with stride 2: both branches take all channels."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        half = outputs // 2
        self.conv1 = depthwise(inputs, 2)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = pointwise(inputs, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = pointwise(inputs, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = depthwise(half, 2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return F.channel_shuffle(torch.cat([left, right], 1), 2)


class ShuffleNet(nn.Module):
    """Initialised by torch's defaults, as the published students are."""

    stages = ("layer1", "layer2", "layer3")
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, num_classes: int, version: int):
        super().__init__()
        self.conv1 = pointwise(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        inputs = STEM
        widths = (240, 480, 960) if version == 1 else (116, 232, 464)
        for number, (outputs, units) in enumerate(zip(widths, (4, 8, 4), strict=True), start=1):
            stage: list[nn.Module]
            if version == 1:
                stage = [Unit1(inputs, outputs, 2)]
                stage += [Unit1(outputs, outputs, 1) for _ in range(units - 1)]
            else:
                stage = [DownUnit2(inputs, outputs)]
                stage += [Unit2(outputs) for _ in range(units - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*stage))
            inputs = outputs
        self.conv2 = None
        if version == 2:
            self.conv2 = pointwise(inputs, 1024)
            self.bn2 = nn.BatchNorm2d(1024)
            inputs = 1024
        self.feature_dim = inputs
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> ModelOutput:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.conv2 is not None:
            x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        features = x.mean((2, 3))
        return ModelOutput(self.linear(features), features)


def build(name: str, num_classes: int) -> ShuffleNet:
    """`shufflenetv1` or `shufflenetv2`."""
    return ShuffleNet(num_classes, int(name.removeprefix("shufflenetv")))
