"""Networks on ``meta``: shapes come out, nothing is computed, and no weight is held."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class NetworkOnMeta:
    """A copy of a network that computes shapes only, in evaluation mode.

    Attributes:
        network: the copy, with hooks of its own. Its weights are those of the original; :meth:`run` does not
            read them.
    """

    def __init__(self, network: nn.Module) -> None:
        state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        # The copy takes the tensors for its own: they are not copied.
        self.network = copy.deepcopy(network, {id(tensor): tensor for tensor in state.values()}).eval()
        self._state = {name: tensor.to("meta") for name, tensor in state.items()}

    def run(self, *arguments: Any) -> Any:
        """Returns what the network does of arguments; tensors among them are brought to ``meta``."""
        on_meta = tuple(x.to("meta") if isinstance(x, Tensor) else x for x in arguments)
        return functional_call(self.network, self._state, on_meta)


@torch.no_grad()
def takes(network: nn.Module, *arguments: Any) -> bool:
    """Whether a network takes arguments of this shape, as far as that can be told without computing."""
    try:
        NetworkOnMeta(network).run(*arguments)
    except Exception:  # whatever a network does with what it was not made for
        return False
    return True
