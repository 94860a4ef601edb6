"""VGG with batch norm and one linear layer (Simonyan and Zisserman, ICLR 2015).

The variants for small images of contrastive representation distillation (Tian et al., ICLR 2020):
a max pool after each of the first three blocks, a mean over the positions after the fifth.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from richkd.models.initialise import initialise_convolutions
from richkd.models.output import ModelOutput

WIDTHS = (64, 128, 256, 512, 512)
# Convolutions in each of the five blocks.
DEPTHS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """`depths` are the numbers of convolutions in the five blocks."""

    stages = ("block1", "block2", "block3", "block4")  # as published: without the first
    block0: nn.Sequential
    block1: nn.Sequential
    block2: nn.Sequential
    block3: nn.Sequential
    block4: nn.Sequential

    def __init__(self, num_classes: int, depths: tuple[int, ...]):
        super().__init__()
        inputs = 3
        for number, (depth, outputs) in enumerate(zip(depths, WIDTHS, strict=True)):
            layers: list[nn.Module] = []
            for _ in range(depth):
                conv = nn.Conv2d(inputs, outputs, 3, padding=1)
                layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            setattr(self, f"block{number}", nn.Sequential(*layers))
        self.feature_dim = inputs
        self.classifier = nn.Linear(inputs, num_classes)
        initialise_convolutions(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> ModelOutput:
        """Raises ValueError for images smaller than 8x8."""
        height, width = x.shape[2:]
        if min(height, width) < 8:
            raise ValueError(f"VGG needs images of at least 8x8 pixels, not {height}x{width}")
        for block in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(block(x), 2)
        x = self.block3(x)
        if min(height, width) >= 64:  # as published for 64x64: the fifth block gets 4x4 there, too
            x = F.max_pool2d(x, 2)
        features = self.block4(x).mean((2, 3))
        return ModelOutput(self.classifier(features), features)


def build(name: str, num_classes: int) -> VGG:
    """`vgg8` to `vgg19`."""
    return VGG(num_classes, DEPTHS[name])
