"""The gradients of a large batch in the memory of a small one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn


class ChunkedForward:
    """Embeds a batch chunk by chunk, and later again, chunk by chunk, for the gradients.

    A contrastive loss needs all embeddings but, given its gradient with respect to them, an
    encoder's gradients are a sum over images. So: embed without a graph; let the loss leave its
    gradients in the embeddings; then embed each chunk again, with a graph, and go on backwards from
    them. Equal to one large pass but for rounding where no image sees another inside the encoder;
    batch norm takes the statistics of a chunk.

    Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    arXiv:2101.06983.
    """

    def __init__(self, model: nn.Module, views: Sequence[Tensor], size: int) -> None:
        """views: V of (b, 3, H, W); size: images of each view that are embedded at once."""
        self.model = model
        parts = [view.split(size) for view in views]
        self.chunks = [list(chunk) for chunk in zip(*parts, strict=True)]
        self.states: list[tuple[Tensor, list[Tensor]]] = []  # random state before each chunk

    @torch.no_grad()
    def embed(self) -> list[Tensor]:
        """Return what the model gives for the whole batch; the loss's gradients end there."""
        outputs: list[list[Tensor]] = []
        for chunk in self.chunks:
            self.states.append((torch.get_rng_state(), _cuda_states()))
            outputs.append(self.model(chunk))
        self.z = [torch.cat(parts).requires_grad_() for parts in zip(*outputs, strict=True)]
        return self.z

    def backward(self, no_sync: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Add the encoder's gradients, from those that a loss has left in `embed`'s result.

        no_sync: holds back the averaging over ranks, which only the last chunk needs.
        """
        size = len(self.chunks[0][0])
        gradients = [z.grad.split(size) for z in self.z if z.grad is not None]
        used = [number for number, z in enumerate(self.z) if z.grad is not None]
        for place, chunk in enumerate(self.chunks):
            last = place == len(self.chunks) - 1
            with nullcontext() if last else no_sync(), _random_state(*self.states[place]):
                z = self.model(chunk)
                torch.autograd.backward(
                    [z[number] for number in used], [gradient[place] for gradient in gradients]
                )


def in_chunks(
    embed: Callable[[Sequence[Tensor]], list[Tensor]], views: Sequence[Tensor], size: int
) -> list[Tensor]:
    """Return what `embed` gives for all views, (b, D) each, called for `size` images at a time.

    For a second encoder, which takes no gradient.
    """
    parts = [embed(chunk) for chunk in zip(*(view.split(size) for view in views), strict=True)]
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def _cuda_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


@contextmanager
def _random_state(cpu: Tensor, cuda: list[Tensor]) -> Iterator[None]:
    """The second pass drops what the first one dropped."""
    with torch.random.fork_rng():
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        yield
