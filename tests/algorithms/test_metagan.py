"""MetaGAN: golden numbers of both losses, whom each reaches, unlabelled samples and tasks, noise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from closed_form import QUICK, data_of, grads_of, labelled, with_nan
from golden_algorithms import WAYS, case_of, golden_in_every_way
from golden_algorithms import deviation as relative
from golden_cases import ALGORITHMS, names
from meta_steps import mlp
from torch import nn

import fastmeta
from fastmeta.models import ImageGenerator


def learner_of(**options):
    options = {"ways": 3, "noise": 3, "inner_steps": 2, "inner_optimizer": fastmeta.SGD(lr=0.1)} | options
    return fastmeta.MetaGAN(mlp(2, 8, 4), mlp(options["noise"] + 2, 6, 2), **options)


def of_case(case, way="eager", dtype=torch.float64, **options):
    spec = case.spec
    generator = nn.Sequential(*(getattr(nn, name)(*args) for name, *args in spec["generator"])).double()
    generator.load_state_dict({name.removeprefix("generator/"): x for name, x in case.extra.items()})
    return fastmeta.MetaGAN(
        case.model().to(dtype), generator.to(dtype), ways=spec["ways"], noise=spec["noise"], inner_steps=spec["steps"],
        inner_optimizer=fastmeta.SGD(lr=spec["inner"]["lr"]), **WAYS[way], **options,
    )  # fmt: skip


def episodes_of(case, dtype=torch.float64):
    """Unlabelled samples stand behind the labelled ones."""
    x, y, qx, qy = data_of(case, dtype)
    if case.spec["unlabelled"]:

        def extended(x, y, more):
            return torch.cat([x, more.to(dtype)], 1), F.pad(y, (0, more.shape[1]), value=-1)

        x, y = extended(x, y, case["unlabelled_support"])
        qx, qy = extended(qx, qy, case["unlabelled_query"])
    return [x, y, qx, qy], {name: case[name].to(dtype) for name in ("noise_support", "noise_query")}


def generator_grads(learner):
    return {f"generator/{name}": g for name, g in grads_of(learner.generator).items()}


def check_golden(case, learner, dtype, tolerance, *, through):
    batch, noise = episodes_of(case, dtype)
    out = learner(*batch, **noise)
    out.loss.backward()
    assert abs(out.loss.item() - case["loss"].item()) < tolerance
    assert abs(out.generator_loss.item() - case["generator_loss"].item()) < tolerance
    assert relative(grads_of(learner.module), case.grad) < tolerance
    want = case.grad_extra if through else case.named("grad_extra_query_only/")
    assert relative(generator_grads(learner), want) < tolerance
    return out, batch, noise


@golden_in_every_way("metagan*", compiled={"metagan_maml_k1"})
def test_golden(name, way):
    case = case_of(name)
    learner = of_case(case, way)
    out, batch, noise = check_golden(case, learner, torch.float64, 1e-10, through=True)
    torch.testing.assert_close(out.task_losses.detach(), case["task_losses"], rtol=1e-10, atol=1e-10)
    learners = learner.adapt(*batch[:2], noise=noise["noise_support"])
    adapted = {name.removeprefix("discriminator."): p.detach() for name, p in learners.parameters().items()}
    assert relative(adapted, case.adapted) < 1e-10
    assert out.outputs.shape == (*batch[3].shape, case.spec["ways"])
    torch.testing.assert_close(learners(batch[2]).detach(), out.outputs)


@pytest.mark.parametrize("way", QUICK)
@pytest.mark.parametrize("name", names("metagan*", ALGORITHMS))
def test_golden_by_the_query_sets_fakes_alone(name, way):
    case = case_of(name)
    check_golden(case, of_case(case, way, through_support=False), torch.float64, 1e-10, through=False)


@pytest.mark.parametrize("name", names("metagan*", ALGORITHMS))
def test_golden_in_float32(name):
    case = case_of(name)
    check_golden(case, of_case(case, dtype=torch.float32), torch.float32, 5e-5, through=True)


def test_no_golden_case_passes_with_a_mistake():
    for name in names("metagan*", ALGORITHMS):
        case = case_of(name)
        batch, noise = episodes_of(case)
        for options in ({"through_support": False}, {"first_order": True}):
            learner = of_case(case, **options)
            learner(*batch, **noise).loss.backward()
            assert relative(generator_grads(learner), case.grad_extra) > 0.05
    assert relative(grads_of(learner.module), case.grad) > 1e-2  # first order


def test_first_order_knows_the_query_sets_fakes_alone():
    """Inner gradients are constants, and with them all that the inner loop's fakes do."""
    case = case_of("metagan_maml_k1")
    batch, noise = episodes_of(case)
    learner = of_case(case, first_order=True)
    learner(*batch, **noise).loss.backward()
    assert relative(generator_grads(learner), case.named("grad_extra_query_only/")) < 1e-10


def plain_loss(logits, fakes, labels):
    """L_D of one task as the paper writes it, sample by sample."""
    p, p_fake = logits.softmax(1), fakes.softmax(1)
    known = [i for i, label in enumerate(labels.tolist()) if label >= 0]
    unknown = [i for i, label in enumerate(labels.tolist()) if label == -1]
    real = unknown or known
    loss = -torch.stack([(1 - p[i, -1]).log() for i in real]).mean() - p_fake[:, -1].log().mean()
    if known:
        loss = loss - torch.stack([(p[i, labels[i]] / (1 - p[i, -1])).log() for i in known]).mean()
    return loss


def test_unlabelled_samples_and_tasks():
    """Task 0 has labels alone and padding, task 1 some, task 2 none."""
    batch, learner = labelled(2), learner_of(inner_steps=0)
    for labels in (batch[1], batch[3]):
        labels[0, 1], labels[1, 2:], labels[2] = -100, -1, -1
    noise = torch.randn(3, 4, 3, dtype=torch.float64)
    out = learner(*batch, noise_query=noise)
    for t in range(3):
        x, y = batch[0][t], batch[1][t]
        known = (y >= 0) if (y >= 0).any() else (y == -1)
        code = x[known].mean(0).expand(4, 2)
        fakes = learner.generator(torch.cat([noise[t], code], 1))
        want = plain_loss(learner.module(batch[2][t]), learner.module(fakes), batch[3][t])
        torch.testing.assert_close(out.task_losses[t], want)
    none = learner(batch[0], None, batch[2], None, noise_query=noise)
    assert none.loss.isfinite()
    all_unknown = learner(
        batch[0], torch.full_like(batch[1], -1), batch[2], torch.full_like(batch[3], -1), noise_query=noise
    )
    assert torch.equal(none.task_losses, all_unknown.task_losses)


def test_each_loss_reaches_its_own_network():
    """By steps along minus the gradient: L_D falls by the discriminator's, L_G by the generator's."""
    batch, learner = labelled(2), learner_of()
    noise = {n: torch.randn(3, 5, 3, dtype=torch.float64) for n in ("noise_support", "noise_query")}
    before = learner(*batch, **noise)
    before.loss.backward()
    for network, which in ((learner.module, "loss"), (learner.generator, "generator_loss")):
        moved = [p.grad.clone() for p in network.parameters()]
        slope = sum(g.square().sum() for g in moved).item()
        with torch.no_grad():
            for p, g in zip(network.parameters(), moved, strict=True):
                p.sub_(1e-6 * g)
            after = learner(*batch, **noise)
            for p, g in zip(network.parameters(), moved, strict=True):
                p.add_(1e-6 * g)
        fall = (getattr(before, which) - getattr(after, which)).item()
        assert abs(fall / (1e-6 * slope) - 1.0) < 1e-3


def test_weighted_losses_of_tasks():
    batch, learner = labelled(2), learner_of()
    noise = {n: torch.randn(3, 5, 3, dtype=torch.float64) for n in ("noise_support", "noise_query")}
    learner(*batch, **noise).task_losses[1].backward()
    got = grads_of(learner)
    learner.zero_grad()
    learner(*(x[1:2] for x in batch), **{n: z[1:2] for n, z in noise.items()}).loss.backward()
    assert relative(got, grads_of(learner)) < 1e-12


def test_noise_does_not_depend_on_the_chunks():
    batch, learner = labelled(2), learner_of(backend="torch")
    losses = []
    for chunk in (None, 1, 2):
        learner.task_chunk = chunk
        torch.manual_seed(11)
        losses.append(learner(*batch).task_losses.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-13, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-13, atol=0)
    assert not torch.equal(learner(*batch).task_losses, losses[0])


@pytest.mark.parametrize("way", ["eager", "reference"])
def test_a_task_with_nan_is_left_out(way):
    batch = labelled(2)
    encoder = mlp(2, 5)
    learner = fastmeta.MetaGAN(
        mlp(2, 8, 4), mlp(8, 6, 2), ways=3, noise=3, encoder=encoder, inner_steps=2,
        inner_optimizer=fastmeta.SGD(lr=0.1), **WAYS[way],
    )  # fmt: skip
    noise = {n: torch.randn(3, 5, 3, dtype=torch.float64) for n in ("noise_support", "noise_query")}
    broken, without = with_nan(batch)
    learner(*without, **{n: z[[0, 2]] for n, z in noise.items()}).loss.backward()
    want = grads_of(learner)
    assert any(name.startswith("encoder") and g.norm() > 0 for name, g in want.items())
    learner.zero_grad()
    with pytest.warns(RuntimeWarning, match="1"):
        out = learner(*broken, **noise)
    out.loss.backward()
    assert out.finite.tolist() == [True, False, True]
    assert relative(grads_of(learner), want) < 1e-12
    assert out.generator_loss.isfinite()


def test_losses_of_large_logits_are_exact():
    """Beyond 20 PyTorch's softplus is linear."""
    from fastmeta.algorithms.metagan import generator_loss

    logits = torch.tensor([[0.0, 0.0, 25.0], [30.0, -5.0, 0.0]], dtype=torch.float64)
    want = (logits.logsumexp(1) - logits[:, :2].logsumexp(1)).mean()
    torch.testing.assert_close(generator_loss(logits, None), want, rtol=1e-12, atol=0)
    assert abs(F.softplus(torch.tensor(25.0, dtype=torch.float64)) - 25.0) == 0.0


def test_images():
    """A convolutional discriminator with batch norm, the generator of the package, evaluation without gradients."""
    shape = (1, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 4),
    )  # fmt: skip
    generator = ImageGenerator(64 + 5, channels=4, shape=shape)
    assert ImageGenerator(7)(torch.randn(2, 7)).shape == (2, 1, 28, 28)
    learner = fastmeta.MetaGAN(model, generator, ways=3, noise=5, inner_optimizer=fastmeta.SGD(lr=0.1))
    batch = labelled(*shape, dtype=torch.float32)
    out = learner(*batch)
    out.loss.backward()
    assert all(p.grad.norm() > 0 for p in generator.parameters())
    with torch.no_grad():
        logits = learner.adapt(*batch[:2], steps=3)(batch[2])
        again = learner.adapt(*batch[:2], steps=1).adapt_further(*batch[:2], steps=2)(batch[2])
        assert learner(*batch).loss.isfinite()
    assert logits.shape == again.shape == (3, 5, 3)
    assert not logits.requires_grad
    assert learner.adapt(*batch[:2]).module(0)(batch[2][0]).shape == (5, 3)
    with pytest.raises(ValueError, match="multiples of 4"):
        ImageGenerator(7, shape=(1, 30, 28))


def test_saved_and_loaded():
    batch, learner, twin = labelled(2), learner_of(), learner_of()
    noise = {n: torch.randn(3, 5, 3, dtype=torch.float64) for n in ("noise_support", "noise_query")}
    twin.load_state_dict(learner.state_dict())
    assert torch.equal(twin(*batch, **noise).loss, learner(*batch, **noise).loss)


def test_wrong_options_and_data():
    x, y, qx, qy = labelled(2)
    for options, message in (
        ({"ways": 1}, "ways must be an integer of at least 2"),
        ({"noise": 0}, "noise must be an integer of at least 1"),
        ({"encoder": 3}, r"encoder must be a torch\.nn\.Module"),
        ({"through_support": 1}, "through_support must be True or False"),
        ({"ways": 4}, "discriminator must give 5 logits a sample"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            learner_of(**options)(x, y, qx, qy)
    learner = learner_of()
    for option, value in (("outer_loss", F.mse_loss), ("inner_batch_size", 2), ("bn_statistics", "support")):
        with pytest.raises(ValueError, match=f"{option} cannot be set: MetaGAN has its own losses"):
            setattr(learner, option, value)
    for data, message in (
        ((x, y + 1, qx, qy), "support_y: labels must lie in"),
        ((x, y, qx, qy.double()), "query_y must be labels int64"),
        ((x, y, None, None), "query_x must be a tensor"),
        ((x, y, qx[:, :, :1], qy), "generator must make samples of the shape of query_x"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            learner(*data)
    with pytest.raises(ValueError, match=r"noise_support must have shape \[3, F, 3\]"):
        learner(x, y, qx, qy, noise_support=torch.randn(3, 4, 2))

    class Longer(fastmeta.MetaGAN):
        def episodes(self, batch):
            return batch

    with pytest.raises(TypeError, match="makes its own episodes"):
        Longer(mlp(2, 4), mlp(5, 2), ways=3, noise=3)


def test_what_tasks_share_and_what_is_learned_hears_of_the_discriminators_loss_alone():
    batch = labelled(2)
    noise = {n: torch.randn(3, 5, 3, dtype=torch.float64) for n in ("noise_support", "noise_query")}

    class HeadAlone(fastmeta.MetaGAN):
        def adapts(self, name):
            return "2." in name

    found = []
    for frozen in (False, True):
        torch.manual_seed(0)
        rates = fastmeta.PerLayerPerStep(0.1)
        learner = HeadAlone(
            mlp(2, 8, 4), mlp(5, 6, 2).requires_grad_(not frozen), ways=3, noise=3, inner_steps=2,
            inner_optimizer=fastmeta.SGD(lr=rates),
        )  # fmt: skip
        learner(*batch, **noise).loss.backward()
        found.append({n: g for n, g in grads_of(learner).items() if not n.startswith("generator")})
        assert (learner.generator[0].weight.grad is None) == frozen
    assert "learned.values" in found[0]
    assert relative(*found) < 1e-14
