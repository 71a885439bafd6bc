"""How positives enter a loss: in a term of their own, as views, as neighbours, or as targets."""

from __future__ import annotations

import torch
from torch import Tensor

from .objective import Beside, Objective, Views, unit


def positive_term(z: Tensor, z_positive: Tensor) -> Tensor:
    """Return mean(2 - 2 z.z_positive), the mean squared distance on the unit sphere.

    z, z_positive: (B, D) of unit length. The third view is never a negative.

    Zeng et al., 2024, arXiv:2408.16965.
    """
    return (2 - 2 * (z * z_positive).sum(dim=1)).mean()


def loss_terms(
    objective: Objective, z: Views, positives: Views, place: str, beside: Beside
) -> dict[str, Tensor]:
    """Return the loss of a global batch by its terms: "contrastive" and perhaps "positive".

    z, positives: projections, (B, D) each, of the anchors' views and of M positives. place: "term"
    gives the mean over the positives of their distance from the first view; as "view" they join
    z; as "neighbour" the objective sees them in `beside`; as "target" it has seen them there.
    """
    if place == "view":
        z = [*z, *positives]
    elif place == "neighbour":
        beside = beside._replace(neighbours=[positive.detach() for positive in positives])
    terms = {"contrastive": objective.loss(z, beside)}
    if place == "term" and positives:
        each = [positive_term(unit(z[0]), unit(positive)) for positive in positives]
        terms["positive"] = torch.stack(each).mean()
    return terms
