"""Losses against the reference implementation's numbers and against slow loops from the papers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clsp.train.config import TrainConfig
from clsp.train.objectives import Beside, make_objective
from clsp.train.objectives.moco import MoCo, info_nce
from clsp.train.objectives.objective import Queue, momentum
from clsp.train.objectives.positive import positive_term
from clsp.train.objectives.simclr import nt_xent

# Made by the reference implementation; "how" in the file says how its inputs are drawn.
CASES = json.loads((Path(__file__).parent / "data" / "losses.json").read_text())["cases"]


def unit(x: np.ndarray, axis: int) -> Tensor:
    return torch.from_numpy(x / np.linalg.norm(x, axis=axis, keepdims=True))


def rows(batch: int, dim: int, seed: int) -> Tensor:
    drawn = torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(drawn.double(), dim=1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"B{case['B']}")
def test_losses_are_the_reference_implementations(case: dict[str, float]) -> None:
    rng = np.random.default_rng(case["seed"])
    batch, dim, queue = case["B"], case["D"], case["Q"]
    z = [unit(rng.standard_normal((batch, dim)).astype(np.float32), 1) for _ in range(5)]
    negatives = unit(rng.standard_normal((dim, queue)).astype(np.float32), 0).T
    found = {
        "ntxent": nt_xent(z[0], z[1], case["temperature"]),
        "positive_term": positive_term(z[0], z[2]),
        "moco_infonce": info_nce(z[3], z[4], negatives, case["temperature"]),
    }
    for name, value in found.items():
        assert float(value) == pytest.approx(case[name], abs=1e-5)


def test_nt_xent_is_the_papers_sum() -> None:
    """Equation 1 of SimCLR, term by term."""
    first, second = rows(6, 5, 0), rows(6, 5, 1)
    z, total = torch.cat([first, second]), 0.0
    for i in range(12):
        twin = (i + 6) % 12
        below = sum(math.exp(float(z[i] @ z[k]) / 0.3) for k in range(12) if k != i)
        total -= math.log(math.exp(float(z[i] @ z[twin]) / 0.3) / below)
    assert float(nt_xent(first, second, 0.3)) == pytest.approx(total / 12, rel=1e-12)


def test_info_nce_is_the_papers_sum() -> None:
    query, key, queue = rows(4, 5, 0), rows(4, 5, 1), rows(8, 5, 2)
    total = 0.0
    for i in range(4):
        positive = math.exp(float(query[i] @ key[i]) / 0.2)
        negatives = sum(math.exp(float(query[i] @ n) / 0.2) for n in queue)
        total -= math.log(positive / (positive + negatives))
    assert float(info_nce(query, key, queue, 0.2)) == pytest.approx(total / 4, rel=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: nt_xent(a, b, 0.2),
        lambda a, b: info_nce(a, b, rows(8, 5, 9), 0.2),
        positive_term,
    ],
    ids=["nt_xent", "info_nce", "positive_term"],
)
def test_gradients_are_right_and_the_order_does_not_matter(loss) -> None:
    a, b = rows(6, 5, 0).requires_grad_(), rows(6, 5, 1).requires_grad_()
    assert torch.autograd.gradcheck(loss, (a, b))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(a[order], b[order]), loss(a, b))


def test_the_positive_term_pulls_both_ways_and_is_a_squared_distance() -> None:
    a, b = rows(6, 5, 0).requires_grad_(), rows(6, 5, 1).requires_grad_()
    value = positive_term(a, b)
    torch.testing.assert_close(value, (a - b).square().sum(dim=1).mean())
    value.backward()
    assert a.grad.abs().sum() > 0
    assert b.grad.abs().sum() > 0
    assert positive_term(a, a).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_a_collapsed_encoder_has_the_loss_of_chance(method: str) -> None:
    config = TrainConfig(method=method, batch=8, queue=16, dim=4)
    objective = make_objective(config, nn.Linear(3, 4))
    same = nn.functional.normalize(torch.ones(8, 4), dim=1)
    for module in objective.modules():
        if isinstance(module, Queue):
            module.keys[:] = same[0]
    value = objective.loss([same, same], Beside([same, same]))
    assert float(value) == pytest.approx(objective.chance(8), rel=1e-6)


def test_a_queue_is_first_in_first_out() -> None:
    queue = Queue(6, 2)
    pushed = [torch.full((2, 2), float(n)) for n in range(4)]
    for keys in pushed:
        queue.push(keys)
    torch.testing.assert_close(queue.keys, torch.cat([pushed[3], pushed[1], pushed[2]]))
    with pytest.raises(ValueError, match="no multiple of a batch of 5"):
        queue.push(torch.ones(5, 2))


def test_the_key_encoder_follows_after_the_step_and_takes_no_gradient() -> None:
    class Views(nn.Linear):
        def forward(self, views):
            return [super(Views, self).forward(v) for v in views]

    torch.manual_seed(0)
    encoder = Views(3, 4)
    objective = MoCo(encoder, dim=4, queue=8, temperature=0.2, decays=(0.9, 0.9))
    views = [torch.randn(4, 3), torch.randn(4, 3)]
    beside = Beside(objective.targets(views))
    assert not any(target.requires_grad for target in beside.targets)
    loss = objective.loss(encoder(views), beside)
    before = objective.teacher.copy.weight.clone()
    loss.backward()
    with torch.no_grad():
        encoder.weight.add_(1.0)
    torch.testing.assert_close(objective.teacher.copy.weight, before)
    objective.after_step(encoder, beside, done=0.0)
    torch.testing.assert_close(objective.teacher.copy.weight, 0.9 * before + 0.1 * encoder.weight)
    # View 1's keys are the negatives of view 2's queries, and the other way round.
    for queue, target in zip((objective.first, objective.second), beside.targets, strict=True):
        torch.testing.assert_close(queue.keys[:4], target)
    assert objective.teacher.copy.weight.grad is None


def test_moco_is_the_mean_of_both_directions() -> None:
    objective = MoCo(nn.Linear(3, 4), dim=4, queue=8, temperature=0.2, decays=(0.9, 1.0))
    q1, q2, k1, k2 = (rows(4, 4, n).float() for n in range(4))
    one = info_nce(q1, k2, objective.second.keys, 0.2)
    two = info_nce(q2, k1, objective.first.keys, 0.2)
    torch.testing.assert_close(objective.loss([q1, q2], Beside([k1, k2])), (one + two) / 2)


def test_momentum_is_half_a_cosine() -> None:
    assert [momentum(0.99, 0.999, d) for d in (0.0, 1.0)] == pytest.approx([0.99, 0.999])
    assert momentum(0.99, 0.999, 0.5) == pytest.approx(0.9945)
