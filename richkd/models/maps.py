"""The feature maps of a network, by hooks on its stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from richkd.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from richkd.models.output import ModelOutput


def stage_names(model: nn.Module) -> tuple[str, ...]:
    """The submodules that are the model's stages; InputError where they are not known."""
    names = getattr(model, "stages", ())
    if not names or not isinstance(names, tuple):  # some of timm's networks call a module `stages`
        name = getattr(model, "arch", type(model).__name__)
        raise InputError(
            f"the stages of {name} are not known, so it has no feature maps; of torchvision's "
            "and timm's networks only the ResNets have them"
        )
    return names


def with_maps(model: nn.Module) -> Callable[[Tensor], ModelOutput]:
    """A function that calls `model`, and whose output has the map after each stage in `.maps`.

    The function takes images (N, 3, H, W). A map is (N, channels, height, width), in the dtype of
    the network's activations; gradients pass through. The stages are the submodules that
    `model.stages` names. Their hooks exist only during a call, so other calls of the model cost
    nothing extra. Raises InputError for a model without named stages.
    """
    stages = [model.get_submodule(name) for name in stage_names(model)]

    def call(images: Tensor) -> ModelOutput:
        maps: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            maps.append(output)

        hooks = [stage.register_forward_hook(keep) for stage in stages]
        try:
            output: ModelOutput = model(images)
        finally:
            for hook in hooks:
                hook.remove()
        return output.add_maps(maps)

    return call
