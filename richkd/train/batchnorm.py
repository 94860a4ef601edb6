"""BatchNorm (Ioffe and Szegedy, ICML 2015) whose statistics are those of all processes' images."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from richkd.base import distributed


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, in place, with each BatchNorm over the batch of all processes while it trains.

    Parameters, buffers and their names stay the same, and a single process keeps its model as it
    is. Gradients are those of the sum of the processes' losses. All processes must have equally
    many images. Each layer must have weights, running statistics and momentum, as by default.
    """
    if distributed.processes() == 1:
        return model
    from timm.layers import BatchNormAct2d, convert_sync_batchnorm  # takes seconds to import

    if device.type == "cuda":
        # torch's own function would lose the activation in timm's BatchNormAct2d.
        return convert_sync_batchnorm(model)
    for module in model.modules():  # torch's SyncBatchNorm does not run on CPUs
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = SynchronisedBatchNorm
        elif type(module) is BatchNormAct2d:
            module.__class__ = SynchronisedBatchNormAct  # type: ignore[assignment]
    return model


def count_apart(model: nn.Module) -> list[Tensor]:
    """Stop the model's BatchNorms from counting their batches; returns their counters.

    Counting takes one more GPU kernel for each layer and step, and nothing reads the counters while
    the model trains. The training loop adds the number of steps to them instead.
    """
    modules: list[nn.Module] = []
    for module in model.modules():
        for kind, uncounted in UNCOUNTED.items():
            if type(module) is kind:
                module.__class__ = uncounted
                modules.append(module)
    return [cast(Tensor, module.num_batches_tracked) for module in modules]


class _Uncounted(nn.modules.batchnorm._BatchNorm):
    """BatchNorm that does not count its batches; needs running statistics and a momentum."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            cast(float, self.momentum),
            self.eps,
        )


class UncountedBatchNorm1d(_Uncounted, nn.BatchNorm1d):
    """`nn.BatchNorm1d` that does not count its batches."""


class UncountedBatchNorm2d(_Uncounted, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that does not count its batches."""


UNCOUNTED = {nn.BatchNorm1d: UncountedBatchNorm1d, nn.BatchNorm2d: UncountedBatchNorm2d}


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm of all processes' images, (N, channels, ...) with one N everywhere; on CPUs."""

    # Torch's own types allow None; by default a layer has all of these.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        with torch.no_grad():
            # nn.BatchNorm's own kernel, several times faster than var_mean where channels are last.
            rows = x.to(self.running_mean.dtype)  # under autocast x has 16 bits
            own = torch.stack(torch.batch_norm_update_stats(rows, None, None, 0.0))
            # The variance is the mean variance within the processes plus the variance between
            # their means. A mean of squares would take as few messages, but would lose digits where
            # the mean is large.
            means, variances = distributed.gather(own[None]).unbind(1)
            between, mean = torch.var_mean(means, 0, correction=0)
            var = variances.mean(0) + between
            count = x.numel() // x.shape[1] * distributed.processes()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return _Normalise.apply(x, self.weight, self.bias, mean, var, self.eps, count)


class SynchronisedBatchNormAct(SynchronisedBatchNorm):
    """The same for timm's BatchNormAct2d, where dropout and an activation follow."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.act(self.drop(super().forward(x)))
        return output


class _Normalise(torch.autograd.Function):
    """BatchNorm by the given statistics, which follow from x in all processes."""

    @staticmethod
    def forward(  # torch passes the arguments on one by one: they cannot be one tuple
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        count: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.count = eps, count
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors

        def gradients(upstream: Tensor, *wanted: bool) -> tuple[Tensor, ...]:
            """Of x, weight and bias, as if the statistics were constants."""
            return torch.ops.aten.native_batch_norm_backward(
                upstream, x, weight, mean, var, None, None, False, ctx.eps, wanted
            )

        _, *own = gradients(upstream, False, True, True)
        # What x does through the statistics takes from upstream its part along 1 and x-hat.
        of_weight, of_bias = distributed.total(torch.stack(own)) / ctx.count
        along = F.batch_norm(x, mean, var, of_weight, of_bias, eps=ctx.eps)
        of_x, _, _ = gradients(upstream - along, True, False, False)
        return of_x, *own, *[None] * 4
