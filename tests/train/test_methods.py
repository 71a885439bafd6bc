"""Every method: its loss against a slow loop from its paper, its gradients, and short training."""

from __future__ import annotations

import math
import typing
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from clsp.train.config import TrainConfig
from clsp.train.objectives import Beside, loss_terms, make_objective
from clsp.train.objectives.barlow import barlow
from clsp.train.objectives.cacr import cacr
from clsp.train.objectives.dcl import dcl
from clsp.train.objectives.mocov3 import in_batch
from clsp.train.objectives.multi_view import mv_dhel, mv_infonce
from clsp.train.objectives.nnclr import nearest
from clsp.train.objectives.objective import unit
from clsp.train.objectives.supcon import supcon
from clsp.train.objectives.swav import sinkhorn, soft_cross_entropy
from clsp.train.objectives.transform import extrapolate
from clsp.train.objectives.vicreg import correlation_loss, covariance_loss, variance_loss

METHODS = typing.get_args(typing.get_type_hints(TrainConfig)["method"])
B, T = 5, 0.3
LABELS = torch.tensor([0, 1, 0, 2, 1])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def rows(n: int, seed: int = 0) -> Tensor:
    return unit(draw(n, 4, seed=seed))


def exp(a: Tensor, b: Tensor) -> float:
    return math.exp(float(a @ b) / T)


def slow_dcl(a: Tensor, b: Tensor, sigma: float | None) -> float:
    z, total = torch.cat([a, b]), 0.0
    same = [math.exp(float(a[i] @ b[i]) / (sigma or 1)) for i in range(B)]
    for i in range(2 * B):
        below = sum(exp(z[i], z[k]) for k in range(2 * B) if k % B != i % B)
        weight = 1 if sigma is None else 2 - same[i % B] / (sum(same) / B)
        total += -weight * float(z[i] @ z[(i + B) % (2 * B)]) / T + math.log(below)
    return total / (2 * B)


def slow_supcon(z: Tensor, labels: Tensor) -> float:
    total, n = 0.0, len(z)
    for i in range(n):
        below = sum(exp(z[i], z[a]) for a in range(n) if a != i)
        mine = [p for p in range(n) if p != i and labels[p] == labels[i]]
        total -= sum(math.log(exp(z[i], z[p]) / below) for p in mine) / len(mine)
    return total / n


def slow_multi_view(views: Tensor, decoupled: bool) -> float:
    count, total = len(views), 0.0
    places = [(v, j) for v in range(count) for j in range(B)]
    for i in range(B):
        pairs = [(v, w) for v in range(count) for w in range(count) if v != w]
        above = sum(exp(views[v, i], views[w, i]) for v, w in pairs)
        if decoupled:
            above /= 2
            below = math.prod(
                sum(exp(views[v, i], views[v, j]) for j in range(B) if j != i) for v in range(count)
            )
        else:
            below = sum(
                exp(views[v, i], views[p]) for v in range(count) for p in places if p != (v, i)
            )
        total -= math.log(above / below)
    return total / B


def slow_cacr(views: Tensor) -> float:
    places, total = [(v, i) for v in range(len(views)) for i in range(B)], 0.0
    for p in places:
        cost = {q: float((views[p] - views[q]).square().sum()) for q in places if q != p}
        near = {q: math.exp(c) for q, c in cost.items() if q[1] == p[1]}
        far = {q: math.exp(-2 * c) for q, c in cost.items() if q[1] != p[1]}
        total += sum(w * cost[q] for q, w in near.items()) / sum(near.values())
        total -= sum(w * cost[q] for q, w in far.items()) / sum(far.values())
    return total / len(places)


def slow_barlow(a: Tensor, b: Tensor) -> float:
    a, b, total = a - a.mean(0), b - b.mean(0), 0.0
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            below = math.sqrt(float((a[:, i] ** 2).sum())) * math.sqrt(float((b[:, j] ** 2).sum()))
            c = float((a[:, i] * b[:, j]).sum()) / below
            total += (1 - c) ** 2 if i == j else 0.0051 * c**2
    return total


def slow_decorrelation(z: Tensor, normalised: bool) -> float:
    z, dim, total = z - z.mean(0), z.shape[1], 0.0
    for i in range(dim):
        for j in range(dim):
            c = float((z[:, i] * z[:, j]).sum())
            if i != j and normalised:
                total += c**2 / float((z[:, i] ** 2).sum() * (z[:, j] ** 2).sum()) / (dim - 1)
            elif i != j:
                total += (c / (len(z) - 1)) ** 2
    return total / dim


def slow_variance(z: Tensor) -> float:
    return (
        sum(
            max(0.0, 1 - math.sqrt(float(((c - c.mean()) ** 2).sum()) / (len(c) - 1) + 1e-4))
            for c in z.T
        )
        / z.shape[1]
    )


def slow_in_batch(a: Tensor, b: Tensor) -> float:
    shares = [exp(a[i], b[i]) / sum(exp(a[i], key) for key in b) for i in range(B)]
    return -sum(map(math.log, shares)) / B


AMOUNT = 1 + torch.linspace(0.1, 0.9, B).double()[:, None]
LOSSES = {
    "dcl": (lambda a, b: dcl(a, b, T), lambda a, b: slow_dcl(a, b, None)),
    "dclw": (lambda a, b: dcl(a, b, T, 0.5), lambda a, b: slow_dcl(a, b, 0.5)),
    "supcon": (
        lambda a, b: supcon(torch.cat([a, b]), LABELS.repeat(2), T),
        lambda a, b: slow_supcon(torch.cat([a, b]), LABELS.repeat(2)),
    ),
    "mv-infonce": (
        lambda a, b: mv_infonce(torch.stack([a, b, rows(B, 7)]), T),
        lambda a, b: slow_multi_view(torch.stack([a, b, rows(B, 7)]), decoupled=False),
    ),
    "mv-dhel": (
        lambda a, b: mv_dhel(torch.stack([a, b, rows(B, 7)]), T),
        lambda a, b: slow_multi_view(torch.stack([a, b, rows(B, 7)]), decoupled=True),
    ),
    "cacr": (
        lambda a, b: cacr(torch.stack([a, b, rows(B, 7)])),
        lambda a, b: slow_cacr(torch.stack([a, b, rows(B, 7)])),
    ),
    "barlow": (barlow, slow_barlow),
    "variance": (lambda a, b: variance_loss(a - b), lambda a, b: slow_variance(a - b)),
    "covariance": (
        lambda a, b: covariance_loss(a - b),
        lambda a, b: slow_decorrelation(a - b, normalised=False),
    ),
    "correlation": (
        lambda a, b: correlation_loss(a - b),
        lambda a, b: slow_decorrelation(a - b, normalised=True),
    ),
    "in-batch": (lambda a, b: in_batch(a, b, T), slow_in_batch),
    "codes": (
        lambda a, b: soft_cross_entropy(a, b.softmax(1)),
        lambda a, b: (
            -sum(
                float(b[i].softmax(0)[k]) * math.log(float(a[i].softmax(0)[k]))
                for i in range(B)
                for k in range(4)
            )
            / B
        ),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_papers_sum_and_its_gradient_is_right(name: str) -> None:
    loss, slow = LOSSES[name]
    a, b = rows(B, 1).requires_grad_(), rows(B, 2).requires_grad_()
    assert float(loss(a, b)) == pytest.approx(slow(a.detach(), b.detach()), rel=1e-4)
    assert torch.autograd.gradcheck(loss, (a, b))


def test_mv_dhel_does_not_overflow() -> None:
    views = unit(draw(9, 64, 4, seed=3).flatten(0, 1)).view(9, 64, 4).float()
    assert torch.isfinite(mv_dhel(views, 0.01))


def test_extrapolation_makes_a_positive_harder_as_the_paper_says() -> None:
    a, b = rows(B, 1), rows(B, 2)
    s = (a * b).sum(1)
    found = torch.mul(*extrapolate(a, b, AMOUNT)).sum(1)
    m = AMOUNT[:, 0]
    torch.testing.assert_close(found, 2 * m * (1 - m) * (1 - s) + s)
    assert bool((found <= s).all())


def test_sinkhorn_fills_prototypes_alike() -> None:
    codes = sinkhorn(draw(64, 8) * 0.1, rounds=50)
    torch.testing.assert_close(codes.sum(1), torch.ones(64).double())
    torch.testing.assert_close(codes.sum(0), torch.full((8,), 8.0).double(), rtol=1e-3, atol=0)


def test_the_nearest_neighbour_is_a_loops() -> None:
    z, support = rows(B, 1), rows(20, 2)
    slow = [max(support, key=lambda s, row=row: float(s @ row)) for row in z]
    assert torch.equal(nearest(z, support)[:, 0], torch.stack(slow))


class Tiny(nn.Module):
    """Views of flat images -> projections."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.projector = nn.Linear(64, 16)

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        return list(self.projector(self.backbone(torch.cat(list(views)))).chunk(len(views)))


# A teacher of 100 steps has to be quick.
CONFIG = TrainConfig(batch=64, hidden=32, dim=16, queue=256, prototypes=32, ema=0.95, ema_end=0.95)


def beside(objective: nn.Module, views: list[Tensor], labels: Tensor) -> Beside:
    return Beside(objective.targets(views[:2]), labels=labels)


RANDOM = ("ft-simclr", "ft-moco")  # what they draw for a row is tested beside the slow loops
TEACHERS = ("moco", "mocov3", "byol", "dino", "all4one", "ft-moco")


@pytest.mark.parametrize("method", [m for m in METHODS if m not in RANDOM])
def test_the_order_of_a_batch_does_not_matter(method: str) -> None:
    torch.manual_seed(0)
    encoder = Tiny()
    objective = make_objective(replace(CONFIG, method=method), encoder)
    for part in objective.modules():
        if isinstance(part, nn.Dropout | nn.MultiheadAttention):
            setattr(part, "p" if isinstance(part, nn.Dropout) else "dropout", 0.0)
    views, labels = [torch.randn(64, 64) for _ in range(2)], torch.arange(64) % 5
    order = torch.randperm(64)
    values = [
        objective.loss(encoder(v), beside(objective, v, n))
        for v, n in ((views, labels), ([view[order] for view in views], labels[order]))
    ]
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_digits(method: str) -> None:
    """100 steps on noisy, shifted digits; a positive is the same digit of another hand."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    encoder = Tiny()
    objective = make_objective(replace(CONFIG, method=method), encoder)
    # Positives that were moved apart outweigh the negatives at first; the batch draws together.
    steps = 200 if method.startswith("ft-") else 100
    place = objective.places[-1]
    before = knn(encoder, images, labels)
    optimizer = torch.optim.Adam([*encoder.parameters(), *objective.parameters()], lr=1e-2)
    first = [p.clone() for p in objective.parameters() if not p.requires_grad]
    of_label = [(labels == n).nonzero()[:, 0] for n in range(10)]
    for step in range(steps):
        chosen = torch.randint(len(images), (64,))
        other = torch.stack([of_label[n][torch.randint(150, ())] for n in labels[chosen]])
        views = [view(images[i]) for i in (chosen, chosen, other)]
        comes = beside(objective, views, labels[chosen])
        z = encoder(views)
        terms = loss_terms(objective, z[:2], z[2:], place, comes)
        optimizer.zero_grad()
        (terms["contrastive"] + 0.2 * terms.get("positive", 0)).backward()
        optimizer.step()
        objective.after_step(encoder, comes, step / steps)
    assert knn(encoder, images, labels) > before
    spread = unit(z[0]).std(dim=0, unbiased=False).mean() * 4
    assert float(spread) > 0.1
    teachers = [p for p in objective.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in teachers)
    moved = [not torch.equal(p, q) for p, q in zip(teachers, first, strict=True)]
    assert all(moved)
    assert bool(moved) == (method in TEACHERS)


def view(images: Tensor) -> Tensor:
    shift = torch.randint(-1, 2, (2,)).tolist()
    return (images.roll(shift, (1, 2)) + 0.1 * torch.randn_like(images)).flatten(1)


@torch.no_grad()
def knn(encoder: Tiny, images: Tensor, labels: Tensor) -> float:
    """Leave-one-out accuracy of shifted images among the others."""
    features = unit(encoder.backbone.eval()(images.roll(1, 1).flatten(1)))
    stored = unit(encoder.backbone(images.flatten(1)))
    encoder.train()
    near = (features @ stored.T).fill_diagonal_(-1).topk(5).indices
    return float((labels[near].mode(dim=1).values == labels).float().mean())


@pytest.mark.parametrize("method", TEACHERS)
def test_no_gradient_reaches_targets(method: str) -> None:
    torch.manual_seed(0)
    encoder = Tiny()
    objective = make_objective(replace(CONFIG, method=method), encoder)
    views = [torch.randn(64, 64) for _ in range(2)]
    comes = beside(objective, views, torch.arange(64))
    assert not any(target.requires_grad for target in comes.targets)
    objective.loss(encoder(views), comes).backward()
    assert encoder.projector.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


def test_a_positive_enters_only_where_it_can() -> None:
    config = replace(CONFIG, method="simclr", positive="synthetic", positive_as="view")
    with pytest.raises(ValueError, match=r"positive-as is view, but in simclr .* enters as term"):
        make_objective(config, Tiny())


def test_supcon_without_labels_is_refused() -> None:
    objective = make_objective(replace(CONFIG, method="supcon"), Tiny())
    with pytest.raises(ValueError, match="needs labels"):
        objective.loss([rows(B), rows(B)], Beside())
