"""Where a worker stands among the others, and what they do together; alone it costs nothing.

PyTorch's modules for models whose parameters are split take a second to import; only workers that
split theirs pay for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from farreach.learn.collectives import join_batch_norms, synchronise_batch_norms

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from typing_extensions import TypeIs


@dataclass(frozen=True)
class Place:
    """One worker of a group.

    Attributes:
        rank: its number.
        world: how many there are.
        device: where it computes.
        sharded: whether parameters are split over the workers.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sharded: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def seed(self, number: int) -> None:
        """Seed torch's global generators that count here.

        `torch.manual_seed` notes down a stack trace for every kind of device that is not in use, a
        third of a millisecond in all.
        """
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all workers, of a tensor of the same shape everywhere."""
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def gathered(self, value: Any) -> list[Any]:
        """What every worker has, by rank, on all of them; it is pickled on its way."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def agree(self, number: int) -> int:
        """What the first worker says, at the same time on all of them."""
        if self.world == 1:
            return number
        answer = torch.tensor(int(number))  # the CPU's, since a GPU would first finish its work
        dist.broadcast(answer, src=0)
        return int(answer)

    def join_statistics(self, model: nn.Module) -> None:
        """Before the optimizer is made: let batch normalisation see the images of all workers."""
        if self.world > 1 and self.device.type == "cuda":
            synchronise_batch_norms(model)
        elif self.world > 1:
            join_batch_norms(model)

    def split(self, model: nn.Module) -> None:
        """Before the optimizer is made: split the parameters, if they are to be.

        The layers of every stack of layers are gathered one at a time, when they are needed.
        """
        if not self.sharded or self.world == 1:
            return
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in reversed(layers(model)):  # what is inside of others comes before them
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are the mean over the workers."""
        if self.world == 1 or is_split(model):
            return model
        ids = [self.device.index or 0] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every worker the first one's statistics, such as those of batch normalisation."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def in_one_piece(self, model: nn.Module) -> Iterator[None]:
        """In here parts of a model whose parameters are split can be called by themselves.

        Each worker may call them as often as it likes: parameters stay whole from call to call.
        """
        parts = [part for part in model.modules() if is_split(part)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
        for part in parts:
            # FSDP2 leaves the outermost one whole between the passes.
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()

    @contextmanager
    def waiting(self, model: nn.Module, waits: bool) -> Iterator[None]:
        """Backward passes in here exchange no gradients if the next part of the batch will."""
        if is_split(model):
            model.set_requires_gradient_sync(not waits)
            yield
        elif waits and isinstance(model, DistributedDataParallel):
            with model.no_sync():
                yield
        else:
            yield

    def whole_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """All of both states; workers with parts of them call it together."""
        if not is_split(model):
            return model.state_dict(), optimizer.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_state_dict(model, optimizer, options=options)

    def whole_model_state(self, model: nn.Module) -> dict[str, Any]:
        """All of a network's state; workers with parts of it call it together."""
        if not is_split(model):
            return model.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(model, options=options)

    def take_over_model(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Put a network's whole state in, each worker its part."""
        if not is_split(model):
            model.load_state_dict(state)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))

    def take_over(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        states: tuple[dict[str, Any], dict[str, Any]],
    ) -> None:
        """Put whole states in, each worker its part; of a group that split them or did not."""
        of_model, of_optimizer = states
        is_named = any(
            isinstance(name, str)
            for group in of_optimizer["param_groups"]
            for name in group["params"]
        )
        if not is_split(model) and not is_named:
            model.load_state_dict(of_model)
            optimizer.load_state_dict(of_optimizer)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        set_state_dict(
            model,
            optimizer,
            model_state_dict=of_model,
            optim_state_dict=of_optimizer if is_named else _named(of_optimizer, model, optimizer),
            options=StateDictOptions(full_state_dict=is_split(model)),
        )

    def own_model_state(self, model: nn.Module) -> dict[str, Any]:
        """A network's state with this worker's part of what is split."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return get_model_state_dict(model)

    def own_optimizer_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """An optimizer's state likewise, by the names of parameters."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return get_optimizer_state_dict(model, optimizer)

    def take_over_own(
        self,
        model: nn.Module,
        state: dict[str, Any],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Put in a network's state with this worker's part, or with an optimizer that one's."""
        from torch.distributed.checkpoint import state_dict

        if optimizer is None:
            state_dict.set_model_state_dict(model, state)
        else:
            state_dict.set_optimizer_state_dict(model, optimizer, state)


def _named(
    state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """An optimizer's state by the names of parameters, instead of their numbers."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    groups = [
        group | {"params": [order[number] for number in group["params"]]}
        for group in state["param_groups"]
    ]
    return {
        "state": {order[number]: value for number, value in state["state"].items()},
        "param_groups": groups,
    }


def is_split(module: object) -> TypeIs[FSDPModule]:
    """Whether its parameters are split over the workers by FSDP2."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # nobody has split it without
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def layers(model: nn.Module) -> list[nn.Module]:
    """Of every stack of layers in a model, the layers; what holds others comes before them."""
    return [layer for part in model.modules() if _is_stack(part) for layer in part.children()]


def _is_stack(module: nn.Module) -> bool:
    """Whether it is a list of layers, or a chain of layers that are alike."""
    if isinstance(module, nn.ModuleList):
        return True
    names = [name for name, _ in module.named_children()]
    kinds = {type(layer) for layer in module.children()}
    if len(kinds) != 1:
        return False
    if isinstance(module, nn.Sequential):
        return len(names) > 1
    # Such as the stages of timm's RegNets, whose blocks are b1, b2, …
    return all(re.fullmatch(rf"[a-z_]+{n}", name) for n, name in enumerate(names, 1))
