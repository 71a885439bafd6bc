"""Whole objectives, heads and all, against slow loops from their papers; and their gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from clsp.train.config import TrainConfig
from clsp.train.objectives import Beside, Objective, loss_terms, make_objective, unit
from clsp.train.objectives.transform import draw_beta, draw_partners, moved_nt_xent

from .slow_losses import SLOW, B, D, T, slow_codes

CONFIG = TrainConfig(batch=6, hidden=12, dim=D, queue=12, prototypes=10, temperature=T)


class Linear(nn.Linear):
    """Stands for the encoder whose copy a teacher is."""

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        return [super(Linear, self).forward(view) for view in views]


def draw(n: int, seed: int) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).double()


def make(method: str) -> Objective:
    torch.manual_seed(0)
    objective = make_objective(replace(CONFIG, method=method), Linear(3, D)).double()
    for part in objective.modules():  # what is random would not be the same twice
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    return objective


THREE_VIEWS = ("byol", "mocov3", "dino", "swav", "stablerep", "barlow", "vicreg", "vibcreg")


@pytest.mark.parametrize("method", SLOW)
def test_a_whole_loss_is_its_papers_sum_and_its_gradient_is_right(method: str) -> None:
    objective = make(method)
    beside = Beside([unit(draw(B, 3)), unit(draw(B, 4))])
    z = [draw(B, n).requires_grad_() for n in range(3 if method in THREE_VIEWS else 2)]

    def loss(*views: Tensor) -> Tensor:
        torch.manual_seed(5)  # what feature transformation draws
        return objective.loss(views, beside)

    with torch.no_grad():
        expected = SLOW[method](objective, [view.detach() for view in z], beside)
    assert float(loss(*z).detach()) == pytest.approx(expected, rel=1e-4)
    if method == "swav":  # its codes are constants of the gradient, not of the loss
        return
    assert torch.autograd.gradcheck(loss, z, atol=1e-4)


@pytest.mark.parametrize("method", ["byol", "mocov3"])
@pytest.mark.parametrize("crops", [0, 1])
def test_a_positive_as_target_answers_every_view_of_the_anchor(method: str, crops: int) -> None:
    objective = make(method)
    beside = Beside([unit(draw(B, 3)), unit(draw(B, 4)), unit(draw(B, 5))])
    z = [draw(B, n) for n in range(2 + crops)]
    with torch.no_grad():
        found = loss_terms(objective, z, [], "target", beside)
        expected = SLOW[method](objective, z, beside)
        fewer = SLOW[method](objective, z, beside._replace(targets=beside.targets[:2]))
    assert list(found) == ["contrastive"]
    assert float(found["contrastive"]) == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(fewer, rel=1e-4)


def test_swavs_codes_take_no_gradient() -> None:
    """The gradient is that of predicting codes which were written down beforehand."""
    objective = make("swav")
    z = [draw(B, n).requires_grad_() for n in range(2)]
    (found,) = torch.autograd.grad(objective.loss(z, Beside()), z[:1])
    scores = [unit(view) @ unit(objective.prototypes).T for view in z]
    codes = [torch.tensor(slow_codes(score.detach())).double() for score in scores]
    terms = [code * (s / T).log_softmax(1) for code, s in zip(codes, scores[::-1], strict=True)]
    (expected,) = torch.autograd.grad(-sum(term.sum() for term in terms) / (2 * B), z[:1])
    torch.testing.assert_close(found, expected)


def test_the_order_of_a_batch_does_not_matter_to_transformed_features() -> None:
    """When every row takes what was drawn for it along."""
    first, second = unit(draw(B, 0)), unit(draw(B, 1))
    rows, order = torch.cat([first, second]), torch.randperm(B)
    amount, kept, partner = draw_beta(2.0, first) + 1, draw_beta(1.6, rows), draw_partners(rows)
    both = torch.cat([order, order + B])  # row n of the new batch was row both[n]
    moved = moved_nt_xent(
        first[order], second[order], amount[order], kept[both], both.argsort()[partner[both]], T
    )
    torch.testing.assert_close(moved, moved_nt_xent(first, second, amount, kept, partner, T))


@pytest.mark.parametrize("method", ["nnclr", "all4one"])
def test_a_positive_as_neighbour_is_a_target_without_gradient(method: str) -> None:
    """It stands where the support set's nearest would, which then has no say."""
    objective = make(method)
    beside = Beside([unit(draw(B, 3)), unit(draw(B, 4))])
    z = [draw(B, n).requires_grad_() for n in range(2)]
    positives = [draw(B, 7 + n).requires_grad_() for n in range(5)]

    def loss(count: int) -> Tensor:
        return loss_terms(objective, z, positives[:count], "neighbour", beside)["contrastive"]

    with_positives = loss(5)
    with_positives.backward()
    assert all(positive.grad is None for positive in positives)
    assert all(bool((view.grad != 0).any()) for view in z)
    assert float(loss(1).detach()) != pytest.approx(float(with_positives.detach()), rel=1e-6)
    objective.support.keys.copy_(unit(draw(12, 9)))
    torch.testing.assert_close(loss(5), with_positives)
    positives[0].data.copy_(draw(B, 10))
    assert not torch.allclose(loss(5), with_positives)


def test_a_support_set_smaller_than_the_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="queue is 4, but all4one takes 5 neighbours from it"):
        replace(CONFIG, method="all4one", batch=4, queue=4)
