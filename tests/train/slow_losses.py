"""The losses of whole objectives as slow loops from their papers, for test_whole_losses.py.

A head (a predictor, prototypes, the transformer) is taken as it is; what is done with its outputs
is done again here, number by number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from clsp.train.objectives import Beside, Objective, unit
from clsp.train.objectives.all4one import sinusoids
from clsp.train.objectives.transform import draw_beta, draw_partners

B, D, T = 6, 8, 0.3  # rows of a batch, width of a projection, temperature
Slow = Callable[[Objective, list[Tensor], Beside], float]


def share(scores: list[float], place: int) -> float:
    return math.exp(scores[place]) / sum(map(math.exp, scores))


def slow_find(queries: Tensor, keys: Tensor, temperature: float) -> float:
    """Each query has to find its key among all: the mean of -log of the key's share."""
    found = [[float(q @ k) / temperature for k in keys] for q in queries]
    return -sum(math.log(share(scores, i)) for i, scores in enumerate(found)) / len(queries)


def slow_pairs(answers: list[Tensor], targets: list[Tensor], loss: Callable[..., float]) -> float:
    """The sum of both directions; with more answers than two, each counts as much as another."""
    values = [
        loss(answer, target)
        for number, answer in enumerate(answers)
        for place, target in enumerate(targets)
        if number != place or place >= 2  # the third target is of another image
    ]
    return 2 * sum(values) / len(values)


def slow_byol(objective: Objective, z: list[Tensor], beside: Beside) -> float:
    def distance(answer: Tensor, target: Tensor) -> float:
        rows = [unit(objective.predictor(answer))[i] - target[i] for i in range(B)]
        return sum(float(row @ row) for row in rows) / B

    return slow_pairs(z, list(beside.targets), distance)


def slow_mocov3(objective: Objective, z: list[Tensor], beside: Beside) -> float:
    answers = [unit(objective.predictor(view)) for view in z]
    return slow_pairs(answers, list(beside.targets), lambda a, t: 2 * T * slow_find(a, t, T))


def slow_dino(objective: Objective, z: list[Tensor], beside: Beside) -> float:
    count = len(objective.centre)

    def entropy(answer: Tensor, target: Tensor) -> float:
        student = objective.prototypes(answer) / 0.1
        teacher = (objective.head.copy(target) - objective.centre) / 0.04
        return -sum(
            share(teacher[i].tolist(), k) * math.log(share(student[i].tolist(), k))
            for i in range(B)
            for k in range(count)
        ) / len(student)

    return slow_pairs(z, list(beside.targets), entropy) / 2


def slow_codes(scores: Tensor) -> list[list[float]]:
    """Algorithm 1 of SwAV, 3 rounds: columns, then rows, are scaled to equal sums."""
    q = [[math.exp(float(s) / 0.05) for s in row] for row in scores]
    for _ in range(3):
        columns = [sum(row[k] for row in q) for k in range(len(q[0]))]
        q = [[value / columns[k] for k, value in enumerate(row)] for row in q]
        q = [[value / sum(row) for value in row] for row in q]
    return q


def slow_swav(objective: Objective, z: list[Tensor], beside: Beside) -> float:
    scores = [unit(view) @ unit(objective.prototypes).T for view in z]
    codes = [slow_codes(score) for score in scores[:2]]

    def entropy(answer: Tensor, code: list[list[float]]) -> float:
        found = [(row / T).tolist() for row in answer]
        return -sum(
            value * math.log(share(found[i], k))
            for i, row in enumerate(code)
            for k, value in enumerate(row)
        ) / len(code)

    return slow_pairs(scores, codes, entropy) / 2


def slow_neighbours(z: Tensor, support: Tensor, count: int) -> Tensor:
    return torch.stack(
        [torch.stack(sorted(support, key=lambda s, row=row: -float(s @ row))[:count]) for row in z]
    )


def slow_nnclr(objective: Objective, z: list[Tensor], beside: Beside) -> float:
    answers = [unit(objective.predictor(view)) for view in z]
    found = [slow_neighbours(unit(view), objective.support.keys, 1)[:, 0] for view in z]
    return (slow_find(found[0], answers[1], T) + slow_find(found[1], answers[0], T)) / 2


def slow_all4one(objective: Objective, z: list[Tensor], beside: Beside) -> float:
    """Equations 1 to 6 of the paper: a sequence after the other, a feature after the other."""
    keys, place = list(beside.targets), sinusoids(5, D).double()
    near = [slow_neighbours(key, objective.support.keys, 5) for key in keys]
    answers = [unit(objective.predictor(view)) for view in z]
    shifts = [objective.second_predictor(view) for view in z]

    def centroids(sequences: list[list[Tensor]]) -> Tensor:
        inputs = [torch.stack([x + place[i] for i, x in enumerate(some)]) for some in sequences]
        return unit(torch.stack([objective.centroid(some[None])[0, 0] for some in inputs]))

    nnclr = centroid = on = off = 0.0
    for one, other in ((0, 1), (1, 0)):
        nnclr += slow_find(near[one][:, 0], answers[other], T) / 2
        plain = centroids([list(some) for some in near[one]])
        shifted = [[shifts[other][i], *near[other][i][:4]] for i in range(B)]
        centroid += slow_find(plain, centroids(shifted), 0.1) / 2
        a, b = keys[one], z[other]
        for j in range(D):
            for k in range(D):
                cosine = float(a[:, j] @ b[:, k] / (a[:, j].norm() * b[:, k].norm()))
                if j == k:
                    on += (1 - cosine) ** 2 / (2 * D)
                else:
                    off += cosine**2 / (2 * D * (D - 1))
    feature = (0.5 * math.sqrt(on) + 0.5 * math.sqrt(off)) * 10
    return 0.5 * nnclr + 0.5 * centroid + 0.5 * feature


def slow_covariance(first: Tensor, second: Tensor) -> list[list[float]]:
    a, b = first - first.mean(0), second - second.mean(0)
    return [[float(a[:, j] @ b[:, k]) / (B - 1) for k in range(D)] for j in range(D)]


def off_diagonal(matrix: list[list[float]]) -> list[tuple[int, int, float]]:
    return [(j, k, matrix[j][k]) for j in range(D) for k in range(D) if j != k]


def slow_vicreg(objective: Objective, z: list[Tensor], beside: Beside) -> float:
    """Equation 6 of VICReg with its weights 25, 25, 1; VIbCReg's with 25, 25, 200."""
    total, bound = 0.0, objective.weights[2] == 200
    for other in z[1:]:
        first = z[0]
        invariance = sum(float((first[i] - other[i]) @ (first[i] - other[i])) for i in range(B))
        total += 25 * invariance / (B * D)
        for view in (first, other):
            c = slow_covariance(view, view)
            total += sum(25 * max(0, 1 - math.sqrt(c[j][j] + 1e-4)) / D for j in range(D))
            for j, k, value in off_diagonal(c):
                if bound:
                    total += 200 * value**2 / (c[j][j] * c[k][k]) / (D * (D - 1))
                else:
                    total += value**2 / D
    return total / (len(z) - 1)


def slow_barlow(objective: Objective, z: list[Tensor], beside: Beside) -> float:
    """Equations 1 and 2 of Barlow Twins, times 0.1; a further view is one more pair."""
    total = 0.0
    for other in z[1:]:
        deviation = [
            [math.sqrt(row[j]) for j, row in enumerate(slow_covariance(view, view))]
            for view in (z[0], other)
        ]
        c = slow_covariance(z[0], other)
        c = [[c[j][k] / (deviation[0][j] * deviation[1][k]) for k in range(D)] for j in range(D)]
        total += 0.1 * sum((1 - c[j][j]) ** 2 for j in range(D))
        total += 0.1 * 0.0051 * sum(value**2 for _, _, value in off_diagonal(c))
    return total / (len(z) - 1)


def slow_stablerep(objective: Objective, z: list[Tensor], beside: Beside) -> float:
    """The multi-positive cross-entropy: all views of an anchor are equally likely."""
    rows, places = torch.cat([unit(view) for view in z]), range(len(z) * B)
    total = 0.0
    for i in places:
        others = [j for j in places if j != i]
        scores = [float(rows[i] @ rows[j]) / T for j in others]
        mine = [n for n, j in enumerate(others) if j % B == i % B]
        total -= sum(math.log(share(scores, n)) for n in mine) / len(mine)
    return total / len(places)


def slow_ft_moco(objective: Objective, z: list[Tensor], beside: Beside) -> float:
    """Equations 5 and 6 of feature transformation in MoCo's loss, one row after the other."""
    total = 0.0
    torch.manual_seed(5)
    for query, key, queue in (
        (unit(z[0]), beside.targets[1], objective.second.keys),
        (unit(z[1]), beside.targets[0], objective.first.keys),
    ):
        amount = draw_beta(2.0, key) + 1
        kept, partner = draw_beta(1.6, queue), draw_partners(queue)
        mixed = [kept[n] * queue[n] + (1 - kept[n]) * queue[partner[n]] for n in range(len(queue))]
        for i in range(B):
            harder_query = amount[i] * query[i] + (1 - amount[i]) * key[i]
            harder_key = amount[i] * key[i] + (1 - amount[i]) * query[i]
            scores = [harder_query @ harder_key, *(query[i] @ n for n in mixed)]
            total -= math.log(share([float(s) / T for s in scores], 0)) / (2 * B)
    return total


def slow_ft_simclr(objective: Objective, z: list[Tensor], beside: Beside) -> float:
    """The same in SimCLR's loss, where negatives are mixtures of the batch's other rows."""
    torch.manual_seed(5)
    first, second = unit(z[0]), unit(z[1])
    rows, total = torch.cat([first, second]), 0.0
    amount, kept = draw_beta(2.0, first) + 1, draw_beta(1.6, rows)
    partner = draw_partners(rows).tolist()
    for i in range(2 * B):
        m, twin = amount[i % B], rows[(i + B) % (2 * B)]
        harder = (m * rows[i] + (1 - m) * twin) @ (m * twin + (1 - m) * rows[i])
        negatives = [
            rows[i] @ (kept[n] * rows[n] + (1 - kept[n]) * rows[partner[n]])
            for n in range(2 * B)
            if n % B != i % B and partner[n] % B != i % B
        ]
        total -= math.log(share([float(s) / T for s in (harder, *negatives)], 0)) / (2 * B)
    return total


SLOW: dict[str, Slow] = {
    "byol": slow_byol,
    "mocov3": slow_mocov3,
    "dino": slow_dino,
    "swav": slow_swav,
    "nnclr": slow_nnclr,
    "all4one": slow_all4one,
    "barlow": slow_barlow,
    "vicreg": slow_vicreg,
    "vibcreg": slow_vicreg,
    "stablerep": slow_stablerep,
    "ft-moco": slow_ft_moco,
    "ft-simclr": slow_ft_simclr,
}
