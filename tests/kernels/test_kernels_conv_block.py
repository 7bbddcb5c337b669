"""Convolutional networks on Triton kernels through the public API, in interpreter mode, against float64 truth."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from convolutions import OPTIONS, SHAPES, batch_of, conv, net, norm, smallest
from kernel_runs import DEVICE, assert_as_good_as_torch, check_any_order, check_golden, needs_kernels, results
from torch import nn

import fastmeta

pytestmark = needs_kernels


@pytest.mark.usefixtures("poison", "wide_tiles")
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    model, options = OPTIONS[name]
    assert_as_good_as_torch(model(), batch_of(2, 6, 5), inner_loss=F.cross_entropy, **options)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    image, support, layers = SHAPES[name]
    model = net(*layers(), image=image)
    batch = batch_of(*image, support=support, tasks=1)
    assert_as_good_as_torch(model, batch, inner_loss=F.cross_entropy, inner_steps=1)


@pytest.mark.usefixtures("poison", "wide_tiles")
def test_images_of_miniimagenet_size():
    model = net(*conv(3, 3, pool=nn.MaxPool2d(2)), *conv(3, 3, pool=nn.MaxPool2d(2)), image=(3, 84, 84))
    batch = batch_of(3, 84, 84, support=2, query=2, tasks=1)
    assert_as_good_as_torch(model, batch, inner_loss=F.cross_entropy, inner_steps=1)


@pytest.mark.usefixtures("poison", "wide_tiles")
def test_several_programs_take_the_head():
    """Of an image's pixels each takes a few; the last has fewer."""
    model = net(*conv(2, 32, pool=nn.MaxPool2d(2)), image=(2, 6, 6), classes=5)
    batch = batch_of(2, 6, 6, tasks=1, support=5, query=33, classes=5)
    assert_as_good_as_torch(model, batch, inner_loss=F.cross_entropy, inner_steps=1)


def image_regression(*image, outputs):
    data = batch_of(*image)
    targets = (torch.randn(*x.shape[:2], outputs, dtype=torch.float64) for x in (data.support_x, data.query_x))
    return data._replace(support_y=next(targets), query_y=next(targets))


@pytest.mark.usefixtures("poison", "wide_tiles")
@pytest.mark.parametrize("statistics", ["batch", "support"])
def test_mean_squared_error(statistics):
    model = net(*conv(2, 4, pool=nn.AvgPool2d(2)), image=(2, 6, 5), classes=2)
    options = {"inner_loss": F.mse_loss, "bn_statistics": statistics, "inner_steps": 1}
    assert_as_good_as_torch(model, image_regression(2, 6, 5, outputs=2), **options)


@pytest.mark.usefixtures("poison", "wide_tiles")
def test_a_hidden_linear_layer_behind_the_convolutions():
    body = net(*conv(2, 4, pool=nn.MaxPool2d(2)), image=(2, 6, 5), classes=6)
    model = nn.Sequential(*body, nn.Tanh(), nn.Linear(6, 3)).double()
    assert_as_good_as_torch(model, batch_of(2, 6, 5), inner_loss=F.cross_entropy, inner_steps=1)


class Residual(nn.Module):
    """Two blocks as ResNet-12 has them, narrow: three convolutions beside a 1×1 one, added, then activation and pool;
    and one as ResNet-18 has them, whose shortcut is what it sees."""

    def __init__(self, statistics=True):
        super().__init__()
        self.branch = nn.Sequential(*conv(2, 4), nn.Conv2d(4, 4, 3, padding=1), norm(4))
        self.shortcut = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), norm(4))
        self.same = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm(4))
        self.head = nn.Linear(4 * 3 * 2, 3)

    def forward(self, x):
        x = F.max_pool2d(torch.tanh(self.branch(x) + self.shortcut(x)), 2)
        x = torch.tanh(x + self.same(x))
        return self.head(x.flatten(1))


@pytest.mark.usefixtures("poison", "wide_tiles")
@pytest.mark.parametrize(
    "options", [{}, {"bn_statistics": "support"}, {"inner_optimizer": fastmeta.Adam(lr=0.01)}], ids=str
)
def test_residual_networks(options):
    torch.manual_seed(1)
    assert_as_good_as_torch(
        Residual().double(), batch_of(2, 6, 5), inner_loss=F.cross_entropy, inner_steps=1, **options
    )


def test_more_tiles_than_shares(monkeypatch):
    """A share is then several tiles, whose statistics are joined; the last one ends in the middle."""
    from fastmeta.kernels import tiles

    monkeypatch.setattr(tiles, "MOST_SHARES", 2)
    model = net(*conv(1, 4, pool=nn.AvgPool2d(2)), image=(1, 13, 11))
    batch = batch_of(1, 13, 11, support=3, tasks=2)
    assert_as_good_as_torch(model, batch, inner_loss=F.cross_entropy, inner_steps=1)


@pytest.mark.usefixtures("poison")
def test_of_equal_elements_the_first_wins():
    """Only a filter's centre is not zero and images are flat in windows, so all four are equal; what lies around the
    first is another than what lies around the others, and goes into the weight's gradient."""
    model = net(*conv(1, 4, pool=nn.MaxPool2d(2)), image=(1, 6, 6))
    with torch.no_grad():
        centre = model[0].weight[..., 1, 1].clone()
        model[0].weight.zero_()[..., 1, 1] = centre
    batch = batch_of(1, 3, 3, tasks=1)
    flat = [x.repeat_interleave(2, -1).repeat_interleave(2, -2) if x.dim() == 5 else x for x in batch]
    assert_as_good_as_torch(model, flat, inner_loss=F.cross_entropy, inner_steps=1)


def test_a_mean_far_from_zero_costs_no_digits():
    """Variances are 1e-6 of squared means, and E[z²] − mean² would leave one digit of them. Images and weights are such
    that z itself is exact in float32."""
    model = net(*conv(1, 4, padding=0), image=(1, 6, 5))
    with torch.no_grad():
        model[0].weight.copy_((model[0].weight * 16).round() / 16)
        model[0].bias.zero_()
    batch = [(4 * x).round() + 1000 if x.dim() == 5 else x for x in batch_of(1, 6, 5, tasks=1)]
    assert_as_good_as_torch(model, batch, inner_loss=F.cross_entropy, inner_steps=0)


@pytest.mark.usefixtures("poison")
def test_bfloat16_stores_operands_in_bfloat16():
    batch, model = batch_of(2, 6, 5), smallest()
    truth = results(model, batch, "reference", torch.float64, inner_loss=F.cross_entropy)
    got = results(model, batch, "triton", torch.float32, inner_loss=F.cross_entropy, precision="bfloat16")
    for name, want in truth.items():
        error = ((got[name].double().cpu() - want).norm() / want.norm()).item()
        assert 1e-5 < error < 3e-2, (name, error)


def learner_of(model, backend="triton", **options):
    options = {"inner_optimizer": fastmeta.SGD(lr=0.1), "inner_steps": 1} | options
    return fastmeta.MAML(model.to(DEVICE, torch.float32), inner_loss=F.cross_entropy, backend=backend, **options)


def float_batch(*image, **options):
    return [x.to(DEVICE) for x in batch_of(*image, dtype=torch.float32, **options)]


def test_gradients_of_task_losses_and_learners():
    """Rows of parameters come and go in the layout's order."""
    batch, model = float_batch(2, 6, 5), smallest()

    def gradients(backend):
        learner = learner_of(model, backend)
        learner.zero_grad()
        (learner(*batch).task_losses * torch.tensor([0.3, -1.0], device=DEVICE)).sum().backward()
        first = torch.cat([p.grad.flatten() for p in model.parameters()])
        learner.zero_grad()
        (learner.adapt(*batch[:2])(batch[2]) ** 2).sum().backward()
        return first, torch.cat([p.grad.flatten() for p in model.parameters()])

    for got, want in zip(gradients("triton"), gradients("torch"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_diverging_task_is_left_out():
    batch, learner = float_batch(2, 6, 5), learner_of(smallest())
    batch[0][1, 0, 0, 0, 0] = float("nan")
    warned = pytest.warns(RuntimeWarning, match="non-finite") if DEVICE == "cpu" else contextlib.nullcontext()
    with warned:
        out = learner(*batch)
    assert out.finite.tolist() == [True, False]
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in learner.module.parameters())


def test_programs_may_run_in_any_order_and_give_the_same_bits(monkeypatch):
    from fastmeta.kernels import tiles

    monkeypatch.setattr(tiles, "PIXEL_VALUES", 512)
    batch, learner = float_batch(1, 9, 8), learner_of(net(*conv(1, 4, pool=nn.MaxPool2d(2)), image=(1, 9, 8)))
    check_any_order(monkeypatch, learner, batch)


def plain(*layers, features, classes=3):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))


class OnTheImage(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(60, 3)

    def forward(self, x):
        return self.head((x + self.conv(x)).flatten(1))


class NormOfWhatOthersRead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 2, 3, padding=1), norm(2), nn.Linear(60, 3)

    def forward(self, x):
        x = self.conv(x)
        return self.head((x + torch.tanh(self.norm(x))).flatten(1))


REFUSED = {
    "7×7": (lambda: plain(nn.Conv2d(2, 3, 7, padding=3), features=90), r"kernel \[7, 7\], the kernels take 1, 3, 5"),
    "3×1": (lambda: plain(nn.Conv2d(2, 3, (3, 1)), features=60), r"kernel \[3, 1\]"),
    "stride 3": (lambda: plain(nn.Conv2d(2, 3, 3, stride=3), features=6), r"stride \[3, 3\], the kernels take 1, 2"),
    "dilation": (lambda: plain(nn.Conv2d(2, 3, 3, padding=2, dilation=2), features=90), "dilation"),
    "groups": (lambda: plain(nn.Conv2d(2, 4, 3, padding=1, groups=2), features=120), "groups 2"),
    "channels": (lambda: plain(nn.Conv2d(2, 129, 1), features=129 * 30), "129 channels, the kernels take up to 128"),
    "group norm": (lambda: plain(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), features=120), "no kernel for group_norm"),
    "other pool": (lambda: plain(nn.Conv2d(2, 4, 1), nn.MaxPool2d(3), features=8), "no kernel for pool"),
    "activation behind a pool": (
        lambda: plain(nn.Conv2d(2, 4, 1), nn.MaxPool2d(2), nn.Tanh(), features=24), "no kernel for activation here"),
    "no head": (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "must be linear"),
    "running statistics": (
        lambda: plain(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4).eval(), features=120), "running statistics; use train"),
    "a shortcut of the image": (OnTheImage, "the kernels add images of two convolutions"),
    "branches otherwise": (NormOfWhatOthersRead, "of what others read too"),
    "activation": (lambda: plain(nn.Conv2d(2, 4, 1), nn.ELU(), features=120), "no kernel for the activation elu"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_kernel_takes_is_named(name):
    model, message = REFUSED[name]
    with pytest.raises(RuntimeError, match=message):
        learner_of(model())(*float_batch(2, 6, 5))


def test_images_beyond_84_are_refused():
    with pytest.raises(RuntimeError, match="images of 85×6, the kernels take 5 to 84 a side"):
        learner_of(plain(nn.Conv2d(1, 2, 1), features=1020))(*float_batch(1, 85, 6))


@pytest.mark.usefixtures("wide_tiles")
@pytest.mark.golden("conv4*k[12]")
def test_golden(golden):
    check_golden(golden)


@pytest.mark.nightly  # minutes of the interpreter's
@pytest.mark.usefixtures("wide_tiles")
@pytest.mark.golden("conv4*k3")
def test_golden_of_three_steps(golden):
    check_golden(golden)
