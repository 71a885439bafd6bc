"""Each transform against torchvision's own, image by image, on the same drawn parameters."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from clsp.shards.order import hash_key, uniforms
from clsp.train import views
from clsp.train.config import TrainConfig
from clsp.train.tuples import Tuples
from clsp.train.views import (
    DRAWS,
    ViewParameters,
    draw_parameters,
    make_view,
    make_views,
    resized_crop,
)

EVERYTHING = TrainConfig(
    crop_min=0.08,
    jitter=(0.4, 0.4, 0.4, 0.2),
    jitter_p=0.8,
    grey_p=0.3,
    blur_p=0.4,
    solarize_p=0.4,
)


def draw(batch: int, size: int, config: TrainConfig = EVERYTHING, epoch: int = 0) -> ViewParameters:
    keys = np.array([hash_key(f"image-{n}") for n in range(batch)], np.uint64)
    return draw_parameters(config, uniforms(3, epoch, keys, "view0", DRAWS), size)


def pictures(batch: int, size: int) -> torch.Tensor:
    """Blocks and noise in uint8, with saturated and grey parts: hue has its corner cases there."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    x[:, :, : size // 4] = x[:, :1, : size // 4]
    x[:, 0, :, : size // 4] = 255
    x[:, :, -2:] = 0
    return x


def blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """torchvision's blur, its kernel as wide as ours, of an image whose edges go on."""
    wide = F.pad(image, [8], padding_mode="edge")
    return F.gaussian_blur(wide, [17, 17], [sigma, sigma])[:, 8:-8, 8:-8]


@pytest.mark.parametrize("size", [8, 32, 96])
def test_resized_crop_is_torchvisions(size: int) -> None:
    images, drawn = pictures(40, size).float() / 255, draw(40, size)
    ours = resized_crop(images, drawn.box, drawn.flip)
    for n, (top, left, height, width) in enumerate(drawn.box.tolist()):
        theirs = F.resized_crop(images[n], top, left, height, width, [size, size], antialias=True)
        theirs = F.hflip(theirs) if drawn.flip[n] else theirs
        small = resized_crop(images[n : n + 1], drawn.box[n : n + 1], drawn.flip[n : n + 1], 6)
        own = F.resized_crop(images[n], top, left, height, width, [6, 6], antialias=True)
        own = F.hflip(own) if drawn.flip[n] else own
        torch.testing.assert_close(small[0], own, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours[n], theirs, atol=1e-5, rtol=0)  # its weights are float32


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("adjust_brightness", (0.0, 0.6, 1.0, 1.4)),
        ("adjust_contrast", (0.0, 0.6, 1.0, 1.4)),
        ("adjust_saturation", (0.0, 0.6, 1.0, 1.4)),
        ("adjust_hue", (-0.5, -0.1, 0.0, 0.23, 0.5)),
    ],
)
def test_colour_operation_is_torchvisions(name: str, factors: tuple[float, ...]) -> None:
    images = pictures(len(factors), 16).float() / 255
    ours = getattr(views, name)(images, torch.tensor(factors).view(-1, 1, 1, 1))
    for n, factor in enumerate(factors):
        theirs = getattr(F, name)(images[n], factor)
        torch.testing.assert_close(ours[n], theirs, atol=2e-6, rtol=0)


def test_grey_and_solarize_are_torchvisions() -> None:
    images = pictures(8, 16).float() / 255
    torch.testing.assert_close(views.grey(images), F.rgb_to_grayscale(images))
    torch.testing.assert_close(views.solarize(images), F.solarize(images, 0.5))


@pytest.mark.parametrize("size", [6, 16, 32])
def test_blur_is_torchvisions(size: int) -> None:
    images, sigmas = pictures(4, size).float() / 255, (0.1, 0.5, 1.3, 2.0)
    ours = views.blur(images, torch.tensor(sigmas).view(-1, 1, 1, 1))
    for n, sigma in enumerate(sigmas):
        torch.testing.assert_close(ours[n], blurred(images[n], sigma), atol=2e-6, rtol=0)


def test_a_whole_view_is_torchvisions_transforms_in_a_row() -> None:
    images, drawn = pictures(64, 32), draw(64, 32)
    assert drawn.jitter.any()
    assert drawn.grey.any()
    assert drawn.blur.any()
    assert drawn.solarize.any()
    assert drawn.flip.any()
    ours = make_view(images, drawn, EVERYTHING)
    jitter = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for n in range(64):
        x = F.resized_crop(images[n].float() / 255, *drawn.box[n].tolist(), [32, 32])
        x = F.hflip(x) if drawn.flip[n] else x
        for number in drawn.order[n] if drawn.jitter[n] else []:
            x = jitter[number](x, float(drawn.factors[n, number]))
        x = F.rgb_to_grayscale(x, 3) if drawn.grey[n] else x
        x = blurred(x, float(drawn.sigma[n])) if drawn.blur[n] else x
        x = F.solarize(x, 0.5) if drawn.solarize[n] else x
        x = F.normalize(x, EVERYTHING.mean, EVERYTHING.std)
        # Solarisation jumps at one half: a value that rounds to the other side of it may differ.
        close = (ours[n] - x).abs() < 1e-4
        assert close.float().mean() > 0.999 if drawn.solarize[n] else close.all()


def test_a_view_does_not_depend_on_its_batch() -> None:
    images, drawn = pictures(10, 16), draw(10, 16)
    together = make_view(images, drawn, EVERYTHING)
    part = ViewParameters(**{name: value[3:7] for name, value in vars(drawn).items()})
    torch.testing.assert_close(make_view(images[3:7], part, EVERYTHING), together[3:7])


def test_epochs_and_images_draw_differently() -> None:
    first, second = draw(20, 32), draw(20, 32, epoch=1)
    assert not (first.box == second.box).all(axis=1).any()
    assert len({tuple(row) for row in first.factors}) == 20


def test_boxes_are_distributed_as_torchvisions() -> None:
    """Means and deviations of area and side ratio over 4,000 draws, within 5 standard errors."""
    ours = draw(4000, 32, TrainConfig(crop_min=0.2)).box[:, 2:].astype(float)
    torch.manual_seed(0)
    image = torch.zeros(3, 32, 32)
    drawn = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = np.array(drawn)[:, 2:].astype(float)
    for measure in (lambda b: b[:, 0] * b[:, 1], lambda b: np.log(b[:, 0] / b[:, 1])):
        a, b = measure(ours), measure(theirs)
        error = np.sqrt((a.var() + b.var()) / 4000)
        assert abs(a.mean() - b.mean()) < 5 * error
        assert a.std() == pytest.approx(b.std(), rel=0.1)


def test_shares_are_the_probabilities() -> None:
    drawn = draw(4000, 8)
    chosen_by = ((drawn.flip, 0.5), (drawn.jitter, 0.8), (drawn.grey, 0.3), (drawn.blur, 0.4))
    for chosen, p in chosen_by:
        assert chosen.mean() == pytest.approx(p, abs=0.04)
    assert {tuple(row) for row in drawn.order} == set(permutations(range(4)))
    assert (drawn.factors[:, :3] >= 0.6).all()
    assert (drawn.factors[:, :3] <= 1.4).all()
    assert 0.1 <= drawn.sigma.min() < 0.2 < 1.9 < drawn.sigma.max() <= 2


def item(batch: int, size: int, positives: int) -> Tuples:
    images = torch.stack([pictures(batch, size).roll(n, 0) for n in range(1 + positives)], 1)
    keys = np.array([hash_key(f"image-{n}") for n in range(batch)], np.uint64)
    return Tuples(images[:, 0], images[:, 1:], keys, step=0, epoch=0.0, ends_epoch=False)


def test_local_crops_are_small_and_come_before_the_positives() -> None:
    batch = item(6, 16, 2)
    config = TrainConfig(positive="synthetic", positives=2, method="dino", crop_min=0.4)
    made = {
        n: make_views(batch, replace(config, local_crops=n), torch.device("cpu")) for n in (0, 3)
    }
    assert [view.shape[-1] for view in made[3]] == [16, 16, 8, 8, 8, 16, 16]
    for one, other in zip(made[0], made[3][:2] + made[3][5:], strict=True):
        assert torch.equal(one, other)  # local crops draw nothing that others draw
    assert not torch.equal(made[3][2], made[3][3])
    sized = make_views(batch, replace(config, local_crops=1, local_size=6), torch.device("cpu"))
    assert sized[2].shape == (6, 3, 6, 6)
    keys = np.arange(2000, dtype=np.uint64)
    draws = uniforms(0, 0, keys, "local0", DRAWS)
    box = draw_parameters(config, draws, 96, local=True).box[:, 2:]
    area = box.prod(axis=1) / 96**2
    assert 0.04 < area.min() < 0.06
    assert 0.36 < area.max() < 0.42


def test_a_positive_that_is_not_augmented_is_only_normalised() -> None:
    batch = item(6, 16, 2)
    config = TrainConfig(positive="synthetic", positives=2)
    augmented = make_views(batch, config, torch.device("cpu"))
    plain = make_views(batch, replace(config, augment_positives=False), torch.device("cpu"))
    assert all(torch.equal(one, other) for one, other in zip(augmented[:2], plain[:2], strict=True))
    for n in range(2):
        image = batch.positives[:, n].float() / 255
        torch.testing.assert_close(plain[2 + n], F.normalize(image, config.mean, config.std))


def test_the_second_view_alone_may_be_solarised() -> None:
    config = replace(EVERYTHING, solarize_views="second")
    first, second = (
        draw_parameters(config, uniforms(3, 0, np.arange(50, dtype=np.uint64), "v", DRAWS), 8, **of)
        for of in ({}, {"second": True})
    )
    assert not first.solarize.any()
    assert second.solarize.any()
    batch = item(50, 8, 1)
    config = replace(config, positive="synthetic", crop_min=1.0, jitter_p=0.0, grey_p=0.0)
    config = replace(config, blur_p=0.0, flip_p=0.0, solarize_p=1.0, mean=(0,) * 3, std=(1,) * 3)
    views_made = make_views(batch, config, torch.device("cpu"))
    torch.testing.assert_close(views_made[0], batch.anchor / 255)
    torch.testing.assert_close(views_made[1], F.solarize(batch.anchor / 255, 0.5))
    torch.testing.assert_close(views_made[2], batch.positives[:, 0] / 255)
