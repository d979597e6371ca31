"""Random numbers that are the same however a batch is spread over processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regseg_d2.common.distributed import rank
from regseg_d2.ops.sampling import mix_bits


class RandomStream(nn.Module):
    """Counter-based random numbers: each one follows from (seed, step, stream, image, position) alone.

    A generator gives every process its own numbers, in an order that depends on what was drawn before.
    Here an image of the batch gets the same numbers on whichever process and device it is, so that W
    processes draw what one process with the whole batch draws. Seed and step are buffers: a resumed run
    draws what the uninterrupted one draws.

    Args:
        seed: seed of the run; a negative one counts as 0.
    """

    seed: Tensor
    step: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("seed", torch.tensor(max(seed, 0) % 2**32, dtype=torch.long))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def bits(self, stream: int, num_images: int, length: int) -> Tensor:
        """Draws for the images of this process.

        Args:
            stream: number of the purpose: two streams of one step are independent.
            num_images: images N of this process, the same number on all processes.
            length: numbers L an image.

        Returns:
            ``(N, L)`` long, uniform in ``[0, 2**32)``.
        """
        first = rank() * num_images
        images = torch.arange(first, first + num_images, device=self.seed.device)
        return self._draw(stream, images, length)

    def shared_bits(self, stream: int, length: int) -> Tensor:
        """Draws ``(L,)`` numbers that are the same on all processes; see :meth:`bits`."""
        return self._draw(stream, torch.zeros(1, dtype=torch.long, device=self.seed.device), length)[0]

    @torch.no_grad()
    def advance(self) -> None:
        """Goes to the next step."""
        self.step += 1

    def _draw(self, stream: int, images: Tensor, length: int) -> Tensor:
        # Mixed one by one: seed + stream would give neighbouring seeds each other's streams.
        state = mix_bits(mix_bits(mix_bits(self.seed) + stream) + self.step)
        rows = mix_bits(state + images).unsqueeze(1)
        # Positions are mixed too: the numbers of two images would else be runs of one long sequence, which
        # may overlap.
        return mix_bits(rows + mix_bits(torch.arange(length, device=rows.device)))
