"""Every recipe opens and builds its method; solo-learn's are what its files say."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest
import torch

from clsp.recipes import load_recipe
from clsp.train.config import TrainConfig
from clsp.train.encoder import ProjectedEncoder
from clsp.train.objectives import make_objective

RECIPES = Path(__file__).parents[2] / "train" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))
FAMILIES = ["simclr", "simclr-aug", "clsp-simclr", "clsp-noaug"]
FAMILIES += ["moco", "moco-aug", "clsp-moco", "supcon"]
REFERENCE = [name + data for name in FAMILIES for data in ("", "-cifar100", "-stl10")]

# From solo-learn's scripts/pretrain/cifar/*.yaml: lr, weight_decay, proj_hidden_dim,
# proj_output_dim, temperature, queue_size, base_tau, final_tau, optimizer, clip_lr, augmentations.
SOLO = {
    "simclr": (0.4, 1e-4, 2048, 256, 0.2, None, None, None, "lars", True, "symmetric"),
    "moco": (0.3, 1e-4, 2048, 256, 0.2, 32768, 0.99, 0.999, "sgd", None, "symmetric_weak"),
    "mocov3": (0.3, 1e-6, 4096, 256, 0.2, None, 0.99, 1.0, "lars", True, "asymmetric"),
    "byol": (1.0, 1e-5, 4096, 256, None, None, 0.99, 1.0, "lars", True, "asymmetric"),
    "nnclr": (0.4, 1e-5, 2048, 256, 0.2, 65536, None, None, "lars", True, "asymmetric"),
    "all4one": (1.0, 1e-5, 2048, 256, 0.2, 98304, 0.99, 1.0, "lars", True, "asymmetric"),
    "barlow": (0.3, 1e-4, 2048, 2048, None, None, None, None, "lars", True, "asymmetric"),
    "vicreg": (0.3, 1e-4, 2048, 2048, None, None, None, None, "lars", True, "own"),
    "vibcreg": (0.3, 1e-4, 2048, 2048, None, None, None, None, "lars", False, "own"),
    "swav": (0.6, 1e-6, 2048, 128, 0.1, None, None, None, "lars", True, "symmetric"),
    "dino": (0.3, 1e-6, 2048, 256, None, None, 0.9995, 1.0, "lars", True, "asymmetric"),
    "supcon": (0.4, 1e-5, 2048, 256, 0.2, None, None, None, "sgd", None, "symmetric"),
}
# crop_min_scale, jitter, gaussian_blur, solarization of the first and of the second view.
AUGMENTATIONS = {
    "symmetric": (0.08, (0.8, 0.8, 0.8, 0.2), 0.5, 0.0, 0.0),
    "symmetric_weak": (0.08, (0.4, 0.4, 0.4, 0.1), 0.5, 0.0, 0.0),
    "asymmetric": (0.08, (0.4, 0.4, 0.2, 0.1), 0.0, 0.0, 0.2),
    "own": (0.2, (0.4, 0.4, 0.2, 0.1), 0.0, 0.1, 0.1),
}
# Linear layers and batch norm of each projector, and the predictor, in solo/methods/*.py.
HEADS = {
    "mocov3": (2, "centred", (4096, "hidden")),
    "byol": (2, "hidden", (4096, "hidden")),
    "nnclr": (3, "all", (4096, "hidden")),
    "all4one": (3, "all", (4096, "hidden")),
    "barlow": (3, "hidden", None),
    "vicreg": (3, "hidden", None),
    "vibcreg": (3, "hidden", None),
    "swav": (2, "hidden", None),
    "dino": (3, "none", None),
}


def recipe(name: str) -> TrainConfig:
    values = load_recipe(name, RECIPES)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return TrainConfig(**{"lambda_" if k == "lambda" else k: v for k, v in values.items()})


def test_all_of_the_references_and_solo_learns_are_there() -> None:
    solo = [f"solo-{name}{data}" for name in SOLO for data in ("", "-cifar100")]
    assert sorted(REFERENCE + solo) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_its_method(name: str) -> None:
    with torch.device("meta"):  # shapes alone
        config = recipe(name)
        encoder = ProjectedEncoder(config)
        objective = make_objective(config, encoder)
        views = [torch.empty(4, 3, 32, 32)] * 2
        assert [z.shape for z in encoder(views)] == [(4, config.dim)] * 2
        assert all(target.shape == (4, config.dim) for target in objective.targets(views))


def test_no_recipe_mixes_sources() -> None:
    """The reference's name no source but the papers, and solo-learn's say where they are from."""
    for name in NAMES:
        head = (RECIPES / f"{name}.toml").read_text().split("method =")[0]
        assert ("github.com/vturrisi/solo-learn" in head) == name.startswith("solo-")
        assert ("reference implementation" in head) == (not name.startswith("solo-"))
        assert recipe(name).lambda_warmup == 0


@pytest.mark.parametrize("data", ["", "-cifar100"])
@pytest.mark.parametrize("name", SOLO)
def test_a_solo_recipe_is_the_table(name: str, data: str) -> None:
    config = recipe(f"solo-{name}{data}")
    lr, decay, hidden, dim, temperature, queue, tau, last_tau, optimizer, clip, kind = SOLO[name]
    assert (config.method, config.positive, config.bn_mode) == (name, "none", "sync")
    assert (config.arch, config.stem, config.epochs, config.batch) == (
        "resnet18",
        "cifar",
        1000,
        256,
    )
    assert (config.lr, config.weight_decay, config.momentum) == (lr, decay, 0.9)
    assert (config.schedule, config.lr_warmup) == ("step", 11)  # the rate is reached at epoch 10
    assert config.optimizer == optimizer
    if optimizer == "lars":
        assert (config.lars_trust, config.lars_clip, config.decay_all) == (0.02, clip, False)
    else:
        assert config.decay_all
    assert (config.hidden, config.dim) == (hidden, dim)
    assert temperature in (None, config.temperature)
    assert queue in (None, config.queue)
    assert tau is None or (config.ema, config.ema_end) == (tau, last_tau)
    layers, norm, predictor = HEADS.get(name, (2, "none", None))
    assert (config.layers, config.projector_bn) == (layers, norm)
    assert predictor in (None, (config.predictor_hidden, config.predictor_bn))
    if name in ("swav", "dino"):
        assert config.prototypes == {"swav": 3000, "dino": 4096}[name]
    crop, jitter, blur, first, second = AUGMENTATIONS[kind]
    assert (config.crop_min, config.jitter, config.blur_p) == (crop, jitter, blur)
    assert (config.jitter_p, config.grey_p, config.flip_p) == (0.8, 0.2, 0.5)
    assert config.solarize_p == second
    assert config.solarize_views == ("all" if first == second else "second")
    normal = {
        "": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        "-cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    }
    assert (config.mean, config.std) == normal[data]


def test_the_ablation_differs_from_clsp_in_one_setting() -> None:
    for data in ("", "-cifar100", "-stl10"):
        ablation, whole = recipe(f"clsp-noaug{data}"), recipe(f"clsp-simclr{data}")
        differs = {
            name
            for name in typing.get_type_hints(TrainConfig)
            if getattr(ablation, name) != getattr(whole, name)
        }
        assert differs == {"augment_positives"}
