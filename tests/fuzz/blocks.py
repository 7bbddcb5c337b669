"""What random networks and losses are made of: lines of Python, as a user would write them.

A block takes `h` [n, 4] and leaves another; `@` stands for its number. `init` runs in `__init__`, `forward` in forward.
"""

from __future__ import annotations

from typing import NamedTuple


class Block(NamedTuple):
    """Lines of a network."""

    name: str
    init: str
    forward: str
    mixes: bool = False  # samples, by anything else than a batch norm


def _layer(name: str, make: str, call: str = "self.m@(h)", mixes: bool = False) -> Block:
    return Block(name, f"self.m@ = {make}", f"h = {call}", mixes)


def _lines(name: str, forward: str, init: str = "", mixes: bool = False) -> Block:
    return Block(name, init, forward, mixes)


LAYERS = [
    _layer("linear", "nn.Linear(4, 4)"),
    _layer("linear without bias", "nn.Linear(4, 4, bias=False)"),
    _layer("bilinear", "nn.Bilinear(4, 4, 4)", "self.m@(h, h.tanh())"),
    _layer("conv1d", "nn.Conv1d(1, 2, 3, padding=1)", "self.m@(h.unsqueeze(1)).sum(1)"),
    _layer("conv2d", "nn.Conv2d(1, 2, 2, padding=1)", "self.m@(h.view(-1, 1, 2, 2))[:, 0, :2, :2].flatten(1)"),
    _layer("depthwise", "nn.Conv2d(2, 2, (1, 2), padding='same', groups=2)", "self.m@(h.view(-1, 2, 1, 2)).flatten(1)"),
    _layer("conv transpose", "nn.ConvTranspose1d(2, 2, 3, padding=1)", "self.m@(h.view(-1, 2, 2)).flatten(1)"),
    _layer("conv3d", "nn.Conv3d(1, 1, (1, 2, 1), padding='same')", "self.m@(h.view(-1, 1, 1, 2, 2)).flatten(1)"),
    _layer("layer norm", "nn.LayerNorm(4)"),
    _layer("rms norm", "nn.RMSNorm(4, eps=1e-3)"),
    _layer("batch norm", "nn.BatchNorm1d(4, eps=0.1)"),
    _layer("batch norm without running statistics", "nn.BatchNorm1d(4, eps=0.1, track_running_stats=False)"),
    _layer("batch norm in eval mode", "nn.BatchNorm1d(4).eval()"),
    _layer("batch norm, cumulative", "nn.BatchNorm1d(4, eps=0.1, momentum=None)"),
    _layer("batch norm 2d", "nn.BatchNorm2d(2, eps=0.1)", "self.m@(h.view(-1, 2, 2, 1)).flatten(1)"),
    _layer("batch norm 3d", "nn.BatchNorm3d(2, eps=0.1)", "self.m@(h.view(-1, 2, 2, 1, 1)).flatten(1)"),
    _layer("group norm", "nn.GroupNorm(2, 4, eps=0.1)"),
    _layer("instance norm", "nn.InstanceNorm1d(2, affine=True, eps=0.1)", "self.m@(h.view(-1, 2, 2)).flatten(1)"),
    _layer(
        "instance norm with statistics", "nn.InstanceNorm1d(2, track_running_stats=True, eps=0.1)",
        "self.m@(h.view(-1, 2, 2)).flatten(1)",
    ),
    _layer(
        "instance norm in eval mode", "nn.InstanceNorm1d(2, track_running_stats=True).eval()",
        "self.m@(h.view(-1, 2, 2)).flatten(1)",
    ),
    _layer("local response norm", "nn.LocalResponseNorm(2)", "self.m@(h.view(-1, 2, 2)).flatten(1)"),
    _layer("functional batch norm", "nn.Linear(4, 4)", "F.batch_norm(self.m@(h), None, None, training=True, eps=0.1)"),
    _lines(
        "batch norm on buffers", "h = F.batch_norm(h, self.mean@, self.var@, training=self.training, eps=0.1)",
        "self.register_buffer('mean@', torch.zeros(4)); self.register_buffer('var@', torch.ones(4))",
    ),
    _layer("spectral norm", "nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))"),
    _layer("old spectral norm", "nn.utils.spectral_norm(nn.Linear(4, 4))"),
    _layer("orthogonal", "nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))"),
    _layer("attention", "nn.MultiheadAttention(2, 1, batch_first=True)",
           "(lambda s: self.m@(s, s, s, need_weights=False)[0])(h.view(-1, 2, 2)).flatten(1)"),
    _layer("attention with weights", "nn.MultiheadAttention(2, 2)",
           "(lambda s: self.m@(s, s, s))(h.view(-1, 2, 2).transpose(0, 1))[0].transpose(0, 1).flatten(1)"),
    _layer("encoder layer", "nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True, activation='gelu')",
           "self.m@(h.view(-1, 2, 2)).flatten(1)"),
    _layer("encoder layer in eval mode",
           "nn.TransformerEncoderLayer(2, 1, 4, batch_first=True, activation='gelu').eval()",
           "self.m@(h.view(-1, 2, 2)).flatten(1)"),
    _lines("causal attention", "s = h.view(-1, 1, 2, 2)\n"
           "h = F.scaled_dot_product_attention(s, self.m@(s), s, is_causal=True).flatten(1)", "self.m@ = nn.Linear(2, 2)"),
    _lines("attention over samples", "h = F.scaled_dot_product_attention(h[None], self.m@(h)[None], h[None])[0]",
           "self.m@ = nn.Linear(4, 4)", True),
    _layer("embedding", "nn.Embedding(5, 4)", "h + self.m@((h.detach() > 0).sum(1))"),
    _layer("embedding with padding", "nn.Embedding(5, 4, padding_idx=2)", "h + self.m@((h.detach() > 0).sum(1))"),
    _layer("embedding bag", "nn.EmbeddingBag(2, 4, mode='sum')", "h + self.m@((h.detach() > 0).long())"),
    _layer("rnn cell", "nn.RNNCell(4, 4)", "self.m@(h, h.sin())"),
    _layer("gru cell", "nn.GRUCell(4, 4)", "self.m@(h, h.sin())"),
    _layer("lstm cell", "nn.LSTMCell(4, 4)", "self.m@(h)[0]"),
    _layer("rnn", "nn.RNN(2, 4, batch_first=True)", "self.m@(h.view(-1, 2, 2))[1][0]"),
    _layer("gru", "nn.GRU(2, 2, batch_first=True)", "self.m@(h.view(-1, 2, 2))[0].flatten(1)"),
    _layer("lstm", "nn.LSTM(2, 2, batch_first=True, bidirectional=True)", "self.m@(h.view(-1, 2, 2))[0][:, 1]"),
    _layer("dropout of nothing", "nn.Dropout(0.0)"),
    _layer("dropout in eval mode", "nn.Dropout(0.5).eval()"),
    _layer("sequential", "nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))"),
    _layer("module list", "nn.ModuleList([nn.Linear(4, 4), nn.Tanh()])", "[h := m(h) for m in self.m@][-1]"),
    _layer("module dict", "nn.ModuleDict({'a': nn.Linear(4, 4)})", "self.m@['a'](h)"),
    _layer("parameter list", "nn.ParameterList([torch.randn(4) for _ in range(2)])", "h * self.m@[0] + self.m@[1]"),
    _layer("parameter", "nn.Parameter(torch.randn(4, 4) / 2)", "h @ self.m@.T"),
    _layer("frozen", "nn.Linear(4, 4).requires_grad_(False)"),
    _lines("frozen trunk", "h = self.m@(h)\nh = torch.cat([h[:, :2], self.n@(h)], 1)",
           "self.m@ = nn.Linear(4, 4).requires_grad_(False); self.n@ = nn.Linear(4, 2)"),
    _lines("low rank", "h = self.m@(h) + self.b@(self.a@(h))",
           "self.m@ = nn.Linear(4, 4).requires_grad_(False); self.a@ = nn.Linear(4, 1); self.b@ = nn.Linear(1, 4)"),
    _lines("tied", "h = self.n@(self.m@(h).tanh())",
           "self.m@ = nn.Linear(4, 4); self.n@ = nn.Linear(4, 4); self.n@.weight = self.m@.weight"),
    _layer("channel shuffle", "nn.ChannelShuffle(2)", "self.m@(h.view(-1, 4, 1, 1)).flatten(1)"),
    _layer("average pool", "nn.AvgPool1d(3, 1, 1)", "self.m@(h.unsqueeze(1)).squeeze(1)"),
    _layer("max pool", "nn.MaxPool1d(3, 1, 1)", "self.m@(h.unsqueeze(1)).squeeze(1)"),
    _layer("adaptive pool", "nn.AdaptiveAvgPool1d(4)", "self.m@(torch.cat([h, h.sin()], 1).unsqueeze(1)).squeeze(1)"),
    _layer("upsample", "nn.Upsample(scale_factor=2)", "self.m@(h[:, :2].unsqueeze(1)).squeeze(1)"),
    _layer("linear upsample", "nn.Upsample(size=4, mode='linear')", "self.m@(h[:, :3].unsqueeze(1)).squeeze(1)"),
    _layer("reflection pad", "nn.ReflectionPad1d((1, 1))", "self.m@(h[:, :2].reshape(-1, 1, 2)).squeeze(1)"),
    _layer("cosine similarity", "nn.CosineSimilarity(dim=1)", "h + self.m@(h, h.cos()).unsqueeze(1)"),
]  # fmt: skip

ACTIVATIONS = [
    _layer(f"{name}", f"nn.{name}")
    for name in (
        "Tanh()", "Sigmoid()", "Softplus()", "GELU()", "GELU('tanh')", "SiLU()", "Mish()", "ELU()", "SELU()", "CELU()",
        "Softsign()", "LogSigmoid()", "Tanhshrink()", "ReLU()", "ReLU6()", "LeakyReLU(0.1)", "PReLU()", "Hardtanh()",
        "Hardswish()", "Hardsigmoid()", "Softmax(1)", "LogSoftmax(1)", "Softmin(1)", "Softshrink()", "Threshold(0.1, 0.2)",
        "ReLU(inplace=True)", "SiLU(inplace=True)", "ELU(inplace=True)", "Hardtanh(inplace=True)", "Mish(inplace=True)",
        "LeakyReLU(inplace=True)",
    )
]  # fmt: skip
ACTIVATIONS += [
    _lines(code, f"h = {code}")
    for code in (
        "h.sin()", "torch.cos(h)", "(h * 0.3).exp()", "torch.expm1(h * 0.3)", "h.square().log1p()", "(h.square() + 1).sqrt()",
        "(h.square() + 1).rsqrt()", "h.atan()", "h.asinh()", "torch.erf(h)", "h.sigmoid() ** 1.5", "h ** 2", "h ** 3 * 0.1",
        "2 ** h.tanh()", "h.abs()", "h.clamp(-1, 1)", "h.clamp(min=h.detach() * 0.5)", "-h", "1 / (1 + h * h)", "h / 2",
        "1 - h", "h.reciprocal().tanh()", "h.sign() * h", "torch.hypot(h, torch.ones_like(h))", "torch.atan2(h, h.cosh())",
        "torch.logaddexp(h, -h)", "torch.xlogy(h.sigmoid(), h.square() + 1)", "torch.sinc(h)", "h.lerp(h.sin(), 0.3)",
        "torch.addcmul(h, h, h, value=0.1)", "torch.addcdiv(h, h, h.square() + 1)", "torch.maximum(h, h.sin())",
        "torch.where(h > 0, h, h * 0.1)", "torch.where(h > 0, h, 0.0)", "F.glu(torch.cat([h, h.cos()], 1))",
        "torch.lgamma(h.square() + 1)", "torch.digamma(h.square() + 1)", "h.frac()", "h.floor() + h.sin()",
        "torch.special.i0e(h)", "torch.logit(h.sigmoid() * 0.8 + 0.1)", "h.nan_to_num()", "h.heaviside(h) + h",
        "torch.fmod(h, 2.0)", "h % 1.5", "h.true_divide(h.cosh())", "torch.copysign(h, h.cos())", "h.log_softmax(-1)",
        "torch.special.entr(h.sigmoid())", "h.cosh().log()", "torch.rsub(h, 1)", "h.double().mul(2.0)",
    )
]  # fmt: skip

IN_PLACE = [
    _lines(code.replace("\n", "; "), f"h = h * 0.5\n{code}")
    for code in (
        "h.exp_()", "h.sin_()", "h.tanh_()", "torch.sigmoid_(h)", "F.relu_(h)", "F.elu_(h)", "F.leaky_relu_(h, 0.1)",
        "torch.relu_(h)", "h **= 2", "h *= h.detach().cos()", "h += h.sin()", "h -= 1", "h /= 2.0", "h.add_(h)",
        "h[:, 0] = h[:, 1] * 2", "h[:, 1:3] += 1", "h[:, 1:3] *= 2", "h[..., -1] = 0.5", "h[0] = 0.1",
        "h[h.detach() > 0] = 0.3", "h[:, [0, 2]] = h[:, [1, 3]].cos()", "h.clamp_(-1, 1)", "h.fill_diagonal_(0.2)",
        "v = h[:, :2]\nv.mul_(2.0)", "v = h.view(-1, 2, 2)[:, 0]\nv.sin_()", "h.t().mul_(0.5)", "h.T[0].add_(1)",
        "v = h[:, ::2]\nw = v[:, 1]\nw.exp_()\nh = h + v.sum(1, keepdim=True)",
        "v = h.view(-1, 2, 2)\nh.mul_(2)\nh = h + v.flatten(1).sin()",
        "a, b = h.chunk(2, 1)\nh = torch.cat([a, b.sin()], 1)\nh[:, 0].mul_(3)",
        "h.index_add_(1, torch.tensor([0, 2]), h[:, 1:3].cos())", "h.scatter_(1, torch.zeros(len(h), 1).long(), 0.7)",
        "h.masked_fill_(h.detach() < 0, 0.1)", "h.copy_(h.sin())", "h.zero_().add_(h.new_ones(4)).mul_(self.w@)",
        "h.addcmul_(h.detach(), h.detach(), value=0.1)", "h.neg_()", "h.squeeze_()", "h.unsqueeze_(0)\nh = h[0]",
        "h.t_()\nh = h.t()", "h.transpose_(0, 1)\nh = h.T", "h.lerp_(h.detach().cos(), 0.3)", "h.cumsum_(1)",
        "h.relu_().add_(1).sqrt_()", "h.mul_(2).add_(h.detach())", "h.index_fill_(1, torch.tensor([1]), 0.4)",
        "h.index_copy_(1, torch.tensor([3]), h[:, :1].cos())", "h.put_(torch.tensor([0]), torch.tensor([0.5]))",
        "o = torch.zeros_like(h)\no[:, :2] = h[:, 2:]\no[:, 2:] += h[:, :2].cos()\nh = o",
        "o = torch.empty(h.shape[0], 4)\no[:] = h\no[:, 0].exp_()\nh = o",
        "o = h.new_zeros(len(h), 4)\nfor j in range(4):\n    o[:, j] = h[:, j] * (j + 1)\nh = o",
        "o = torch.zeros(4)\no += h.mean(0)\nh = h - o", "h = h.contiguous()\nh.mul_(2)", "h[:, 0].copy_(h[:, 1].sin())",
        "h[torch.arange(len(h)), 1] = 0.6", "h.narrow(1, 1, 2).tanh_()", "h.select(1, 2).fill_(0.2)", "h.diagonal().add_(1)",
        "h.unbind(1)[0].mul_(0.5)", "[r.mul_(0.9) for r in h.unbind(0)]", "h.expand_as(h).mul_(2.0)", "h.data.mul_(1.5)",
        "h.detach().mul_(1.5)", "h.detach_()\nh = h * self.w@", "torch.add(h, 1, out=h.detach())",
        "with torch.no_grad():\n    h[:, 0] = 0.5", "with torch.no_grad():\n    h.mul_(0.5)", "h.view(-1)[::3] = 0.1",
        "h.flatten().mul_(2)", "h.reshape(-1, 2).add_(0.3)", "h.as_strided((len(h), 2), (4, 1)).mul_(2)",
        "h.real.mul_(0.5)", "h.masked_scatter_(h.detach() > 0, torch.ones(len(h), 4))", "x = x.clone()\nx.mul_(0.5)",
        "c = self.c@\nc.add_(1)\nh = h * c", "h.clamp_min_(0.1)", "h.logical_not_().add_(self.w@)", "h.floor_().add_(self.w@)",
        "h.requires_grad\nh.mul_(1 if h.is_leaf else 2)", "h.swapaxes(0, 1)[1].sigmoid_()", "h.imul = None if False else 1",
    )
]  # fmt: skip
IN_PLACE = [
    b._replace(init="self.w@ = nn.Parameter(torch.randn(4)); self.register_buffer('c@', torch.ones(4))")
    for b in IN_PLACE
    if "imul" not in b.name
]

GRAD_MODE = [
    _lines(code.replace("\n", "; "), code, init)
    for code, init in (
        ("with torch.no_grad():\n    s = h.mean(1, keepdim=True)\nh = h - s", ""),
        ("with torch.no_grad():\n    s = self.m@(h)\nh = h * s.cos()", "self.m@ = nn.Linear(4, 4)"),
        ("with torch.no_grad():\n    h = self.m@(h)\nh = self.n@(h)",
         "self.m@ = nn.Linear(4, 4); self.n@ = nn.Linear(4, 4)"),
        ("with torch.set_grad_enabled(False):\n    s = h.sin()\nh = h + s", ""),
        ("with torch.set_grad_enabled(self.training):\n    h = self.m@(h)", "self.m@ = nn.Linear(4, 4)"),
        ("with torch.no_grad():\n    with torch.enable_grad():\n        s = h.sin()\n    t = s * 2\nh = s + t", ""),
        ("with torch.inference_mode():\n    s = h.mean()\nh = h - s", ""),
        ("h = h + no_grad_mean(h)", ""),
        ("h = h * h.detach().sin()", ""),
        ("h = h * h.data.cos()", ""),
        ("s = h.detach()\ns = s / s.norm()\nh = h + s", ""),
        ("h = h + self.m@(h.detach())", "self.m@ = nn.Linear(4, 4)"),
        ("h = h @ self.m@.weight.detach().T + self.m@(h)", "self.m@ = nn.Linear(4, 4)"),
        ("h = h + self.m@.weight.data[0]\nh = self.m@(h)", "self.m@ = nn.Linear(4, 4)"),
        ("prev = torch.is_grad_enabled()\ntorch.set_grad_enabled(False)\ns = h.cos()\ntorch.set_grad_enabled(prev)\nh = h * s", ""),
        ("h = Reverse.apply(h)", ""),
        ("h = Straight.apply(h)", ""),
        ("h = SetUp.apply(h, 0.7)", ""),
        ("h = Both.apply(h)", ""),
        ("h = Mapped.apply(h)", ""),
        ("h = h + (Straight.apply(self.w@) * 0.1)", "self.w@ = nn.Parameter(torch.randn(4))"),
        ("h = h + (h.sign() - h).detach()", ""),
        ("h = torch.stack([h, h.detach()]).mean(0)", ""),
        ("with torch.no_grad():\n    a = h.argmax(1)\nh = h + F.one_hot(a, 4)", ""),
        ("with torch.no_grad():\n    a = h.softmax(1)\nh = (a * h).sum(1, keepdim=True) + h", ""),
        ("with torch.autocast('cpu', enabled=False):\n    h = h.sin()", ""),
        ("h.retain_grad() if h.requires_grad else None\nh = h.sin()", ""),
    )
]  # fmt: skip

PYTHON = [
    _lines(code.replace("\n", "; "), code, init, mixes)
    for code, init, mixes in (
        ("h = maybe(h, None)", "", False),
        ("h = maybe(h, h.cos())", "", False),
        ("h = many(h, h.sin(), scale=2.0)", "", False),
        ("h = h if isinstance(h, torch.Tensor) and not isinstance(h, nn.Parameter) else h * 0", "", False),
        ("h = h * 2 if self.flag@ else h", "self.flag@ = True", False),
        ("h = h * self.scale@['a'] + self.scale@['b'][0]", "self.scale@ = {'a': 0.5, 'b': [0.1, 0.2]}", False),
        ("if h.mean() > 0:\n    h = h.sin()\nelse:\n    h = h.cos()", "", True),
        ("h = h * h.sum().item() * 0.1", "", True),
        ("h = h * float(h.detach().mean())", "", True),
        ("h = h + max(h[0].tolist())", "", True),
        ("h = h[h.detach()[:, 0] > 0].sum(0) + h", "", True),
        ("i = (h.detach() > 0).nonzero()\nh = h * (1 + 0.01 * len(i))", "", True),
        ("for j in range(h.shape[1]):\n    h = h + 0.1 * h[:, j : j + 1]", "", False),
        ("h = torch.stack([r * (1 + j) for j, r in enumerate(h.unbind(1))], 1)", "", False),
        ("h = torch.stack([r.sin() for r in h])", "", False),
        ("a, b, c, d = h.T\nh = torch.stack([a + b, b * c, c, d], -1)", "", False),
        ("h = h.new_tensor([1.0, 2.0, 3.0, 4.0]) * h", "", False),
        ("h = h * torch.arange(4, dtype=h.dtype)", "", False),
        ("h = h + torch.linspace(-1, 1, 4).to(h)", "", False),
        ("h = h @ torch.tensor(np.eye(4) + 0.1, dtype=h.dtype)", "", False),
        ("h = h @ (torch.eye(4) + torch.ones(4, 4).tril())", "", False),
        ("h = h + 0.1 * sum(p.sum() for p in self.parameters())", "self.m@ = nn.Linear(4, 4)", False),
        ("h = F.linear(h, dict(self.named_parameters())['m@.weight'])", "self.m@ = nn.Linear(4, 4)", False),
        ("h = h @ self.state_dict()['m@.weight'] + self.m@(h)", "self.m@ = nn.Linear(4, 4)", False),
        ("h = F.linear(h, getattr(self, 'm@').weight.tanh())", "self.m@ = nn.Linear(4, 4)", False),
        ("h = F.linear(h, getattr(self, 'm@').weight, self.m@.bias)", "self.m@ = nn.Linear(4, 4)", False),
        ("h = self.f@(h)", "self.m@ = nn.Linear(4, 4)\nself.f@ = lambda h: self.m@(h).sin()", False),
        ("h = functional_call(self.m@, {'weight': self.m@.weight * 2}, (h,))", "self.m@ = nn.Linear(4, 4)", False),
        ("w = self.m@(h.mean(0)).view(4, 4)\nh = h @ w", "self.m@ = nn.Linear(4, 16)", True),
        ("h = functional_call(self.m@, {'weight': self.w@.view(4, 4), 'bias': self.w@[:4]}, (h,))",
         "self.m@ = nn.Linear(4, 4).requires_grad_(False); self.w@ = nn.Parameter(torch.randn(16))", False),
        ("self.b@.mul_(0.9).add_(h.detach().mean(0) * 0.1)\nh = h - self.b@", "self.register_buffer('b@', torch.ones(4))", True),
        ("self.b@ = self.b@ * 0.9 + h.mean(0) * 0.1\nh = h - self.b@", "self.register_buffer('b@', torch.ones(4))", True),
        ("self.b@ += 1\nh = h * self.b@", "self.register_buffer('b@', torch.ones(4))", False),
        ("self.b@[0] = 3\nh = h * self.b@", "self.register_buffer('b@', torch.ones(4))", False),
        ("self.count@ += 1\nh = h * self.count@", "self.count@ = 0", False),
        ("self.log@.append(h.detach())\nh = h * len(self.log@)", "self.log@ = []", False),
        ("self.kl = self.kl + h.square().mean()", "", True),
        ("self.last@ = h.sin()\nh = h + self.last@", "self.last@ = None", False),
        ("self.kept@['h'] = h\nh = self.kept@['h'] * 2", "self.kept@ = {}", False),
        ("h = self.m@(h)", "self.m@ = nn.Linear(4, 4)\nself.m@.register_forward_hook(lambda m, a, y: y.sin())", False),
        ("h = self.m@(h)", "self.m@ = nn.Linear(4, 4)\nself.m@.register_forward_pre_hook(lambda m, a: (a[0] * 2,))", False),
        ("h = self.m@(h)",
         "self.m@ = nn.Linear(4, 4)\nself.m@.register_full_backward_hook(lambda m, i, o: tuple(g * 2 for g in i))", False),
        ("h = h * 1\nif h.requires_grad:\n    h.register_hook(lambda g: g * 2)", "", False),
        ("h = checkpoint(self.m@, h, use_reentrant=False)", "self.m@ = nn.Sequential(nn.Linear(4, 4), nn.Tanh())", False),
        ("h = checkpoint(lambda h: self.m@(h).sin(), h, use_reentrant=False)", "self.m@ = nn.Linear(4, 4)", False),
        ("z = h.sum(1, keepdim=True)\nz = z if z.requires_grad else z.requires_grad_()\n"
         "(g,) = torch.autograd.grad(self.m@(z).sin().sum(), z, create_graph=True)\nh = h + g", "self.m@ = nn.Linear(1, 4)", False),
        ("h = h + torch.func.grad(lambda z: self.m@(z).sin().sum())(h)", "self.m@ = nn.Linear(4, 4)", False),
        ("h = torch.func.jvp(lambda z: self.m@(z).sin(), (h,), (torch.ones_like(h),))[1]", "self.m@ = nn.Linear(4, 4)", False),
        ("h = torch.func.vmap(lambda r: self.m@(r).sin())(h)", "self.m@ = nn.Linear(4, 4)", False),
        ("h = torch.func.vmap(torch.func.jacrev(lambda r: self.m@(r).sin().sum()))(h)", "self.m@ = nn.Linear(4, 4)", False),
        ("h = torch.func.vjp(lambda z: self.m@(z).sin(), h)[1](h)[0]", "self.m@ = nn.Linear(4, 4)", False),
        ("h = torch.compiler.disable(self.m@)(h)", "self.m@ = nn.Linear(4, 4)", False),
        ("h = reduce(lambda a, b: a + b.sin(), h.split(1, 1), h)", "", False),
        ("try:\n    h = h @ torch.ones(3, 3)\nexcept RuntimeError:\n    h = h.sin()", "", False),
        ("assert h.dim() == 2 and h.size(-1) == 4 and h.dtype == torch.float64\nh = h.sin()", "", False),
        ("h = h.clone() if h.requires_grad else h.sin()", "", False),
        ("h = h.sin() if h.grad_fn is not None else h.cos()", "", False),
        ("h = h.type(torch.float64).to('cpu').to(torch.float64)", "", False),
        ("h = h + (h > 0) + (h < 1).double()", "", False),
        ("h = h.numpy(force=True).sum() * 0.1 + h", "", True),
        ("h = h + torch.ones(1).item()", "", False),
        ("n = int(torch.tensor(3))\nh = h * n", "", False),
        ("k = torch.tensor([0, 2, 1, 3])\nh = h[:, k]", "", False),
        ("h = h[torch.arange(len(h)).flip(0)]", "", True),
        ("h = h + self.t@[1]", "self.t@ = torch.randn(2, 4)", False),
        ("h = h * self.t@", "self.t@ = torch.tensor(1.5)", False),
        ("for p in self.m@.parameters():\n    h = h + p.sum()", "self.m@ = nn.Linear(2, 2)", False),
        ("h = self.m@.forward(h)", "self.m@ = nn.Linear(4, 4)", False),
        ("h = Wrapped(h).value * 2", "", False),
        ("h = h.to(torch.complex128)\nh = (h * 1j).imag", "", False),
        ("h = torch.zeros(len(h), 4).normal_(generator=torch.Generator().manual_seed(1)) * h", "", False),
        ("h = h * torch.randn(4, generator=torch.Generator().manual_seed(0))", "", False),
    )
]  # fmt: skip

LINEAR_ALGEBRA = [
    _lines(code.replace("\n", "; "), f"a = h.view(-1, 2, 2) * 0.3 + 2 * torch.eye(2)\n{code}")
    for code in (
        "h = torch.linalg.solve(a, h.view(-1, 2, 2)).flatten(1)", "h = torch.linalg.inv(a).flatten(1)",
        "h = torch.inverse(a).flatten(1)", "h = h * torch.linalg.det(a)[:, None]", "h = h + torch.slogdet(a)[1][:, None]",
        "h = h + torch.logdet(a @ a.mT)[:, None]", "h = torch.linalg.cholesky(a @ a.mT).flatten(1)",
        "e, v = torch.linalg.eigh(a + a.mT + torch.diag(torch.tensor([0.0, 3.0])))\nh = (v.square() * e[:, None]).flatten(1)",
        "h = torch.cat([torch.linalg.svdvals(a + torch.diag(torch.tensor([0.0, 3.0]))), h[:, :2]], 1)",
        "h = torch.linalg.lstsq(a, h.view(-1, 2, 2)).solution.flatten(1)", "h = torch.linalg.matrix_exp(a * 0.3).flatten(1)",
        "h = torch.linalg.pinv(a).flatten(1)", "h = torch.linalg.matrix_power(a, 3).flatten(1) * 0.05",
        "h = torch.linalg.solve_triangular(a, h.view(-1, 2, 2), upper=False).flatten(1)", "h = torch.linalg.qr(a)[1].flatten(1)",
        "h = h + torch.linalg.matrix_norm(a)[:, None]", "h = torch.cholesky_solve(h.view(-1, 2, 2), torch.linalg.cholesky(a @ a.mT)).flatten(1)",
        "h = torch.linalg.ldl_factor(a + a.mT)[0].flatten(1)", "h = torch.linalg.lu(a)[2].flatten(1)",
        "h = h * torch.linalg.multi_dot([h[:1], self.w@, h[:1].T])", "h = torch.linalg.tensorinv(a[0].view(2, 2), ind=1).flatten() + h",
        "h = h + torch.linalg.eigvalsh(a @ a.mT + torch.diag(torch.tensor([0.0, 2.0]))).sum(1, keepdim=True)",
    )
]  # fmt: skip
LINEAR_ALGEBRA = [
    b._replace(init="self.w@ = nn.Parameter(torch.randn(4, 4))", mixes="[:1]" in b.name or "a[0]" in b.name)
    for b in LINEAR_ALGEBRA
]

NORMS = [
    _lines(code.replace("\n", "; "), code)
    for code in (
        "h = F.normalize(h, dim=1)", "h = h + h.norm(dim=1, keepdim=True)", "h = h / (1e-3 + torch.linalg.vector_norm(h, 3, 1, True))",
        "h = h + (h * 0).norm(dim=1, keepdim=True)", "h = h + torch.linalg.norm(h * 0)", "h = h + h.norm(1, dim=1, keepdim=True) * 0.1",
        "h = h + h.norm(float('inf'), 1, True)", "h = h + F.pairwise_distance(h, h.sin(), keepdim=True)", "h = h + (h * 0).abs().sqrt().nan_to_num()",
        "h = h + torch.dist(h, h.cos())", "h = h + F.normalize(h * 0, dim=1)", "h = h + h.renorm(2, 0, 0.7)",
        "h = h + (h - h.detach()).norm(dim=1, keepdim=True)", "h = h + h.var(1, keepdim=True)", "h = h / (h.std(1, keepdim=True) + 0.5)",
        "h = h - torch.var_mean(h, 1, keepdim=True)[1]", "h = F.layer_norm(h, (4,), eps=0.1)", "h = F.rms_norm(h, (4,), eps=0.1)",
        "h = h + torch.cdist(h[:, None], h.cos()[:, None])[:, 0]", "h = h.prod(1, keepdim=True) + h", "h = (h * torch.tensor([0.0, 1, 1, 1])).prod(1, keepdim=True) + h",
        "h = (h * torch.tensor([0.0, 1, 1, 1])).cumprod(1) + h", "h = h.relu() * h.relu()", "h = h + F.cosine_similarity(h, h * 0, dim=1)[:, None]",
    )
]  # fmt: skip
NORMS = [b._replace(mixes="torch.dist" in b.name or "norm(h * 0)" in b.name) for b in NORMS]

SHAPES = [
    _lines(code, code, mixes=mixes)
    for code, mixes in (
        ("h = h.view(-1, 2, 2).transpose(1, 2).reshape(-1, 4)", False), ("h = h[:, None].expand(-1, 3, 4).sum(1)", False),
        ("h = h.gather(1, h.detach().argsort(1))", False), ("h = h.sort(1)[0]", False), ("h = h.sort(1, descending=True).values.sin()", False),
        ("h = torch.cat([h[:, 2:], h[:, :2].sin()], dim=1)", False), ("h = torch.stack([h, h.cos()], 0).prod(0)", False),
        ("h = h.flip(1)", False), ("h = h.roll(1, 1)", False), ("h = F.pad(h, (1, 1))[:, 2:]\nh = F.pad(h, (0, 0), value=1.0)", False),
        ("h = F.pad(h.unfold(1, 2, 1).sum(2), (0, 1), mode='constant')", False), ("h = h.cumsum(1)", False), ("h = h.cumprod(1)", False),
        ("h = h.topk(2, 1)[0].repeat(1, 2)", False), ("h = h + h.max(1, keepdim=True).values", False), ("h = h + h.amax(1, True)", False),
        ("h = h + h.min(1, keepdim=True)[0]", False), ("h = h + h.median(1, keepdim=True).values", False), ("h = h + h.kthvalue(2, 1, True)[0]", False),
        ("h = h.index_select(1, torch.tensor([3, 1, 1, 0]))", False), ("h = torch.take_along_dim(h, torch.zeros(len(h), 4).long(), 1)", False),
        ("h = torch.zeros_like(h).scatter(1, torch.tensor([[2, 0, 3, 1]]).expand(len(h), 4), h)", False), ("h = torch.zeros_like(h).scatter_add(1, torch.ones(len(h), 4).long(), h)", False),
        ("h = torch.einsum('ni,nj->nij', h, h).sum(2)", False), ("h = torch.bmm(h.view(-1, 2, 2), h.view(-1, 2, 2)).flatten(1)", False),
        ("h = torch.einsum('nij,nkj->nik', h.view(-1, 2, 2), h.view(-1, 2, 2)).flatten(1)", False), ("h = h.view(-1, 2, 2) @ h.view(-1, 2, 2)\nh = h.flatten(1)", False),
        ("h = torch.baddbmm(h.view(-1, 2, 2), h.view(-1, 2, 2), h.view(-1, 2, 2)).flatten(1)", False), ("h = torch.addmm(h, h, torch.eye(4))", False),
        ("a, b = h.chunk(2, 1)\nh = torch.cat((b, a), -1)", False), ("a, b = torch.split(h, [1, 3], 1)\nh = torch.hstack([b, a])", False),
        ("h = h[:, :2].repeat_interleave(2, 1)", False), ("h = h[:, :2].tile(2)", False), ("h = h.movedim(1, 0).sin().movedim(0, 1)", False),
        ("h = h.view(-1, 2, 2).diagonal(dim1=1, dim2=2).repeat(1, 2)", False), ("h = torch.diag_embed(h).sum(1)", False), ("h = h + h.logsumexp(1, True)", False),
        ("h = h - h.mean(0)", True), ("h = h - h.mean(0, keepdim=True).detach()", True), ("h = h @ h.T @ h * 0.1", True), ("h = h.softmax(0)", True),
        ("h = h.cumsum(0)", True), ("h = torch.outer(h[:, 0], h[0])", True), ("h = h.roll(1, 0)", True), ("h = h + h[0]", True), ("h = h + h.sum()", True),
        ("h = h.t().contiguous().t()", False), ("h = h.view(-1, 2, 2).permute(2, 0, 1)[0].repeat(1, 2)", False), ("h = h.unflatten(1, (2, 2)).flatten(-2)", False),
        ("h = h.squeeze().unsqueeze(-1).squeeze(-1)", False), ("h = torch.atleast_2d(h).ravel().view_as(h)", False), ("h = torch.complex(h[:, :2], h[:, 2:]).abs().repeat(1, 2)", False),
        ("h = torch.fft.fft(h, dim=1).real", False), ("h = torch.fft.irfft(torch.fft.rfft(h, dim=1) * 0.5, 4, dim=1)", False), ("h = torch.view_as_real(torch.view_as_complex(h.view(-1, 2, 2)) * 1j).flatten(1)", False),
        ("h = torch.polar(h[:, :2].square() + 1, h[:, 2:]).angle().repeat(1, 2)", False), ("h = (h + 0j).conj().mul(1 - 2j).real", False), ("h = h[..., None].squeeze(2)", False),
        ("h = h[:, torch.tensor([True, False, True, False])].repeat(1, 2)", False), ("h = h.masked_fill(h > 1, 0.5)", False), ("h = h.masked_select(h == h).view(-1, 4)", False),
        ("h = torch.nn.functional.interpolate(h[:, None, :], size=4, mode='nearest')[:, 0]", False), ("h = F.pixel_shuffle(h.view(-1, 4, 1, 1), 2).flatten(1)", False),
        ("h = F.unfold(h.view(-1, 1, 2, 2), 1).flatten(1)", False), ("h = F.grid_sample(h.view(-1, 1, 2, 2), F.affine_grid(torch.eye(2, 3).expand(len(h), 2, 3) * 0.7, (len(h), 1, 2, 2), False), align_corners=False).flatten(1)", False),
        ("h = F.avg_pool2d(h.view(-1, 1, 2, 2), 2).flatten(1).expand(-1, 4)", False), ("h = F.max_pool2d(h.view(-1, 1, 2, 2), 2).flatten(1) + h", False), ("h = F.adaptive_max_pool1d(h[:, None], 2).flatten(1).repeat(1, 2)", False),
        ("h = F.lp_pool1d(h[:, None].abs() + 1, 2, 2).flatten(1).repeat(1, 2)", False), ("h = torch.kron(h[:, :2], torch.ones(1, 2))", False), ("h = torch.tensordot(h, torch.ones(4, 4).triu(), dims=1)", False),
        ("h = torch.cross(h[:, :3], h[:, 1:], dim=1).sum(1, True) + h", False), ("h = torch.trapezoid(h, dim=1)[:, None] + h", False), ("h = torch.diff(h, dim=1, prepend=h[:, :1])", False), ("h = torch.cummax(h, 1)[0]", False),
        ("h = torch.logcumsumexp(h, 1)", False), ("h = torch.searchsorted(torch.tensor([-1.0, 0, 1]), h.detach()) + h", False), ("h = h + torch.bucketize(h.detach(), torch.tensor([0.0]))", False), ("h = torch.meshgrid(h[:, 0], h[0], indexing='ij')[0] + h", True),
        ("h = torch.vander(h[:, 0], 4)", False), ("h = h.quantile(0.3, dim=1, keepdim=True) + h", False), ("h = h.triu() + h.tril(-1) * 2", True), ("h = torch.block_diag(h, h)[: len(h), :4]", False), ("h = h.index_add(1, torch.tensor([0]), h[:, 1:2])", False),
        ("h = torch.index_reduce(h, 1, torch.tensor([0]), h[:, 1:2], 'mean')", False), ("h = h.scatter_reduce(1, torch.zeros(len(h), 4).long(), h, 'sum')", False), ("h = h.put(torch.tensor([0]), torch.tensor([1.0]))", True), ("h = h.take(torch.arange(4)) + h", True),
        ("h = torch.cartesian_prod(h[0, :2], h[0, 2:]).flatten()[:4] + h", True), ("h = torch.combinations(h[0])[:4, 0] + h", True), ("h = torch.cov(h.T)[0] + h", True), ("h = torch.renorm(h, 2, 0, 1.0)", False), ("h = torch.aminmax(h, dim=1, keepdim=True)[1] - h", False), ("h = h.view(-1, 4)[:, [3, 2, 1, 0]]", False),
        ("h = torch.atleast_3d(h).sum(-1)", False), ("h = h.nansum(1, True) + h", False), ("h = h.mode(1, True)[0] + h", False), ("h = h.unique() [:4] + h", True), ("h = h.rot90(2, (0, 1))", True), ("h = torch.as_strided(h.contiguous(), (len(h), 4), (4, 1)).sin()", False), ("h = torch.func.vmap(torch.dot)(h, h)[:, None] + h", False),
    )
]  # fmt: skip

GROUPS: dict[str, list[Block]] = {
    "layers": LAYERS, "activations": ACTIVATIONS, "in place": IN_PLACE, "grad mode": GRAD_MODE, "python": PYTHON,
    "linear algebra": LINEAR_ALGEBRA, "norms": NORMS, "shapes": SHAPES,
}  # fmt: skip
