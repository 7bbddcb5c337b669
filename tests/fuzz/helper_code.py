"""Functions and classes that random programs call: run for each program, so that none shares them with another."""

HELPERS = '''
class Reverse(torch.autograd.Function):
    """Gradient reversal, of the old style."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -0.5 * g


class Straight(torch.autograd.Function):
    """A sign whose gradient passes through."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


class SetUp(torch.autograd.Function):
    """With setup_context, and a gradient that is not its derivative."""

    @staticmethod
    def forward(x, slope):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.slope = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope * ctx.saved_tensors[0].cos(), None


class Both(torch.autograd.Function):
    """With a rule of forward mode."""

    @staticmethod
    def forward(x):
        return x ** 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 3 * g * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx, t):
        return 3 * t * ctx.saved_tensors[0]


class Mapped(torch.autograd.Function):
    """With a rule of vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class Wrapped:
    def __init__(self, value):
        self.value = value


@torch.no_grad()
def no_grad_mean(h):
    return h.mean(1, keepdim=True)


def maybe(h, other=None):
    return h.sin() if other is None else h * other


def many(h, *others, scale=1.0, **rest):
    for other in others:
        h = h + scale * other
    return h if not rest else h * 0


def weights_without_grad(out, y):
    with torch.no_grad():
        return (out - y).square().mean(1).softmax(0)


def weighted(out, y, w):
    return (w * (out - y).square()).sum() / w.sum()


def focal(out, y):
    log_p = out.log_softmax(1)[torch.arange(len(y)), y]
    with torch.no_grad():
        w = (1 - log_p.exp()) ** 2
    return -(w * log_p).mean()


def contrastive(out, y):
    z = F.normalize(out, dim=1)
    same = (y[:, None] == y[None]).double()
    return -(same * (z @ z.T).log_softmax(1)).mean()


def in_place_loss(out, y):
    d = out - y
    d[:, 0] *= 2
    d.pow_(2)
    return d.mean()
'''
