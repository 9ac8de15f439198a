"""What a step does to the weights: gradients shared and clipped, AdamW, and the averaged weights.

All weights lie in one vector, which the policy's parameters are views of; so do gradients, averages and the optimiser's
moments. One operation then does what would be one for each of a hundred parameters, and processes exchange one piece.

Processes on the CPUs of one machine keep these vectors in memory that they share: each moves its own part of the
weights, and all see the whole. Elsewhere the gradients' mean goes round (NCCL, gloo) and each moves all of its copy.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from chunkcast.training.distributed import Processes
from chunkcast.training.local_exchange import LocalExchange
from chunkcast.training.shared_memory import Vectors
from chunkcast.training.train_config import TrainConfig

AVERAGING_POWER = 0.75
"""Of the averages' warm-up: after n steps they forget by no less than (1 + n)^-0.75, as diffusers' ``EMAModel`` has it.
"""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW calls them."""


class WeightUpdate:
    """The optimiser of a policy, and the averages of its weights.

    Args:
        policy: on its device; its parameters become views of one vector.
        config: the run's settings.
        steps: of the whole run, after which the learning rate has come to zero.
        processes: that train together.
    """

    def __init__(self, policy: nn.Module, config: TrainConfig, steps: int, processes: Processes) -> None:
        from diffusers.optimization import get_cosine_schedule_with_warmup

        self._parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._processes, self._clip, self._decay = processes, config.gradient_clip, config.ema_decay
        device = self._parameters[0].device
        vectors = Vectors(sum(self._sizes), device, processes)
        self._part = vectors.part
        self._weights, self._averages = vectors.new(), vectors.new()
        self._gradients, self._gradients_of_all = vectors.one_of_each()
        self._exchange = LocalExchange(processes) if vectors.shared else None
        with torch.no_grad():
            # Processes that share memory write the same.
            self._weights.copy_(torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters]))
            self._averages.copy_(self._weights)
        if not vectors.shared:
            processes.spread(self._weights)
            processes.spread(self._averages)
        self._without_gradient: set[int] = set()
        for index, (parameter, weights, gradient) in enumerate(
            zip(self._parameters, self._views(self._weights), self._views(self._gradients), strict=True)
        ):
            parameter.data = weights
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                self._kept_in(gradient, index)
            )
        own = nn.Parameter(self._weights[self._part])
        own.grad = torch.zeros_like(own) if vectors.shared else self._gradients
        self._own = own
        self._optimizer = torch.optim.AdamW(
            [own],
            lr=config.learning_rate,
            betas=(0.9, config.adam_beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._moments = {name: vectors.new() for name in MOMENTS}
        self._steps = torch.zeros((), device=device)
        self._optimizer.state[own] = {
            "step": self._steps,
            **{name: moment[self._part] for name, moment in self._moments.items()},
        }
        self._schedule = get_cosine_schedule_with_warmup(self._optimizer, config.warmup_steps, steps)
        processes.wait()

    @property
    def shares_memory(self) -> bool:
        """Whether processes do."""
        return self._exchange is not None

    @property
    def learning_rate(self) -> float:
        """After the last step."""
        return float(self._schedule.get_last_lr()[0])

    def step(self, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Move the weights by the gradient of ``loss``, a scalar, the mean of this process's windows.

        Returns:
            The mean loss over the processes, and the gradient's norm before clipping.
        """
        self._without_gradient.update(range(len(self._parameters)))
        loss.backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        gradients = self._views(self._gradients)
        for index in self._without_gradient:
            gradients[index].zero_()
        gradient = self._own.grad
        assert gradient is not None
        count = 1
        if self._exchange:
            self._exchange.wait()  # until all gradients are there
            first, second, *more = self._gradients_of_all[:, self._part]
            torch.add(first, second, out=gradient)
            for another in more:
                gradient.add_(another)
            loss, norm = self._means(self._exchange, loss, gradient)
            count = self._processes.count
        else:
            self._processes.mean([loss, gradient])
            norm = gradient.norm()
        gradient.mul_((self._clip / (norm + 1e-6)).clamp(max=1.0) / count)
        self._optimizer.step()
        self._schedule.step()
        self._averages[self._part].lerp_(self._weights[self._part], 1.0 - self._averaging_decay())
        if self._exchange:
            self._exchange.wait()  # until all have moved their part
        return loss, norm

    def _means(
        self, exchange: LocalExchange, loss: torch.Tensor, sum_of_part: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss, and the norm of the gradients' mean, whose sum each process has a part of."""
        own = struct.pack("<2d", float(loss), float(sum_of_part.square().sum()))
        losses, squares = zip(*(struct.unpack("<2d", each) for each in exchange.exchanged(own)), strict=True)
        count = self._processes.count
        return torch.tensor(sum(losses) / count), torch.tensor(math.sqrt(sum(squares)) / count)

    def _kept_in(self, view: torch.Tensor, index: int) -> Callable[[torch.Tensor], None]:
        """What happens to a parameter's gradient as soon as there is one: it is copied while a cache still holds it,
        where adding it to zeros would move four times as much memory.
        """

        def keep(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            view.copy_(parameter.grad)
            parameter.grad = None
            self._without_gradient.discard(index)

        return keep

    def _averaging_decay(self) -> float:
        """With ``step`` steps done, the first of which replaces the average."""
        warm = max(0, int(self._schedule.last_epoch) - 1)
        return min(self._decay, 1.0 - float((1.0 + warm) ** -AVERAGING_POWER))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The policy holds the averaged weights inside this block."""
        self._hold(self._averages)
        try:
            yield
        finally:
            self._hold(self._weights)

    def _hold(self, vector: torch.Tensor) -> None:
        for parameter, view in zip(self._parameters, self._views(vector), strict=True):
            parameter.data = view

    def _views(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """The parts of ``vector`` that are parameters, in their shapes."""
        parts = torch.split(vector, self._sizes)
        return [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The optimiser's state for a checkpoint, ``PARAMETER.QUANTITY``."""
        named = {
            f"{index}.{name}": value
            for name, moment in self._moments.items()
            for index, value in enumerate(self._views(moment))
        }
        return named | {f"{index}.step": self._steps for index in range(len(self._parameters))}

    def restore(self, state: dict[str, torch.Tensor], averages: list[torch.Tensor], step: int) -> None:
        """Continue where a checkpoint stands; the policy's weights are loaded already.

        Args:
            state: as ``tensors`` gave it.
            averages: of each parameter, in the policy's order.
            step: optimiser steps done.
        """
        with torch.no_grad():
            for name, moment in self._moments.items():
                for index, view in enumerate(self._views(moment)):
                    view.copy_(state[f"{index}.{name}"])
            for view, average in zip(self._views(self._averages), averages, strict=True):
                view.copy_(average)
        self._steps.fill_(float(step))
        self._schedule.last_epoch = step
        groups: list[Any] = self._optimizer.param_groups
        for group, base, rate in zip(groups, self._schedule.base_lrs, self._schedule.lr_lambdas, strict=True):
            group["lr"] = base * rate(step)
        self._processes.wait()
