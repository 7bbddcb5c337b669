"""Losses of random programs: lines of a function of outputs and targets, which may read the network `net`.

`out` is [n, 3]; targets are numbers [n, 3] or labels [n].
"""

from __future__ import annotations

NUMBERS = [
    "F.mse_loss", "nn.MSELoss()", "partial(F.mse_loss, reduction='mean')", "nn.SmoothL1Loss()", "nn.HuberLoss(delta=0.7)",
    "F.binary_cross_entropy_with_logits(out, y.sigmoid())", "(out - y).square().mean()", "((out - y) ** 2).sum(1).mean()",
    "F.kl_div(out.log_softmax(1), y.softmax(1), reduction='batchmean')", "F.cross_entropy(out, y.softmax(1))",
    "F.gaussian_nll_loss(out, y, out.detach().square() + 1)", "F.mse_loss(out, y, reduction='sum')", "F.l1_loss(out, y)",
    "F.mse_loss(out, y) + net.kl", "F.mse_loss(out, y) + 0.1 * net.kl", "F.mse_loss(out, y) * (1 + net.head.weight.sum() * 0.1)",
    "F.mse_loss(out, y) + 0.1 * sum(p.square().sum() for p in net.parameters())", "F.mse_loss(out * learned, y)",
    "F.mse_loss(out, y) + 0.1 * net.head.weight.detach().square().sum()", "((out - y).square() * learned.exp()).mean()",
    "(weights_without_grad(out, y) * (out - y).square().mean(1)).sum()", "weighted(out, y, (out - y).detach().abs().exp())",
    "F.mse_loss(out, y) if out.shape[0] > 2 else F.l1_loss(out, y)", "F.mse_loss(out, y) if out.mean() > 0 else F.l1_loss(out, y)",
    "F.mse_loss(out, y) * F.mse_loss(out, y).item()", "F.mse_loss(Reverse.apply(out), y)", "F.mse_loss(Straight.apply(out), y)",
    "F.cosine_embedding_loss(out, y, torch.ones(len(out)))", "1 - F.cosine_similarity(out, y).mean()", "torch.logcosh(out - y).mean() if False else (out - y).cosh().log().mean()",
    "(out - y).norm()", "(out - y).norm(dim=1).mean()", "torch.quantile((out - y).square(), 0.5)", "torch.maximum(0.3 * (y - out), -0.7 * (y - out)).mean()",
    "torch.linalg.solve(out.T @ out + torch.eye(3), out.T @ y).square().mean()", "torch.cdist(out, y).mean()", "-torch.distributions.Normal(out, 1.5).log_prob(y).mean()",
    "-torch.distributions.MultivariateNormal(out.mean(0), torch.eye(3)).log_prob(y).mean()", "F.poisson_nll_loss(out * 0.3, y.exp())", "F.soft_margin_loss(out, y.sign())",
    "F.mse_loss(out, y) + net.head(torch.ones(2, 4)).square().mean()", "out.square().mean()", "(out[y > 0] - y[y > 0]).square().sum() / out.numel()",
    "in_place_loss(out, y)", "F.triplet_margin_loss(out, y, y.flip(0))", "F.mse_loss(out, y, weight=torch.ones(3)) if False else F.mse_loss(out[:, :2], y[:, :2])",
]  # fmt: skip
LABELS = [
    "F.cross_entropy", "nn.CrossEntropyLoss()", "nn.CrossEntropyLoss(label_smoothing=0.1)", "nn.CrossEntropyLoss(ignore_index=2)",
    "nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))", "partial(F.cross_entropy, label_smoothing=0.2)", "nn.NLLLoss()", "nn.MultiMarginLoss()",
    "F.nll_loss(out.log_softmax(-1), y)", "F.cross_entropy(out, y, reduction='sum')", "F.cross_entropy(out, y, reduction='none').mean()",
    "F.cross_entropy(out / 2.0, y)", "focal(out, y)", "F.cross_entropy(out, F.one_hot(y, 3).to(out.dtype))", "-out.softmax(1)[torch.arange(len(y)), y].mean()",
    "-out.log_softmax(1).gather(1, y[:, None]).mean()", "F.multi_margin_loss(out, y, p=2)", "F.cross_entropy(out, y, weight=torch.tensor([1.0, 2.0, 0.5]))",
    "F.cross_entropy(out, y) + net.kl", "F.cross_entropy(out, y) + 0.1 * net.head.bias.square().sum()", "F.cross_entropy(out * learned, y)",
    "(F.cross_entropy(out, y, reduction='none') * torch.linspace(0, 1, len(y))).sum()", "torch.stack([out[y == c].sum() for c in range(3)]).square().mean()",
    "-torch.distributions.Categorical(logits=out).log_prob(y).mean()", "F.cross_entropy(out, out.detach().argmax(1))", "(out.softmax(1) * out.log_softmax(1)).sum(1).mean()",
    "F.cross_entropy(torch.index_select(out, 0, torch.arange(2)), y[:2])", "contrastive(out, y)", "F.cross_entropy(out[None].transpose(1, 2), y[None])",
]  # fmt: skip
