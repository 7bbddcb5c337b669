"""Groups chains of ops into the fused ops that exist for them: conv2d → batch norm → activation → max-pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from fastmeta.ops.activation import Activation
from fastmeta.ops.conv2d import Conv2d
from fastmeta.ops.conv_block import ConvBlock
from fastmeta.ops.norm import Norm
from fastmeta.ops.pool import MaxPool2d

from .plan import Node

_POOL = MaxPool2d((2, 2), (2, 2), (0, 0), (1, 1), False)
_BATCH_NORM_DIMS = (1, 3, 4)


def group(nodes: list[Node], outputs: set[int]) -> list[Node]:
    """The nodes with every chain that a ConvBlock covers replaced by one. `outputs` are slots the module returns."""
    uses = Counter(slot for node in nodes for slot in node.inputs)
    uses.update(outputs)
    reader = {slot: i for i, node in enumerate(nodes) for slot in node.inputs}

    def follow(node: Node) -> int | None:
        """The node that alone reads this one's output."""
        return reader[node.outputs[0]] if uses[node.outputs[0]] == 1 and node.outputs[0] not in outputs else None

    grouped: list[Node | None] = list(nodes)
    for i in range(len(nodes)):
        chain = _chain(nodes, i, follow)
        if chain is None:
            continue
        for j in chain:
            grouped[j] = None
        grouped[chain[-1]] = _fuse([nodes[j] for j in chain])
    return [node for node in grouped if node is not None]


def _chain(nodes: list[Node], start: int, follow: Callable[[Node], int | None]) -> list[int] | None:
    """Indices of conv, batch norm, activation and perhaps a pool that belong together."""
    if not isinstance(nodes[start].op, Conv2d):
        return None
    chain = [start]
    for fits in (_is_batch_norm, _is_activation):
        following = follow(nodes[chain[-1]])
        if following is None or not fits(nodes[following]) or nodes[following].inputs[0] != nodes[chain[-1]].outputs[0]:
            return None
        chain.append(following)
    pool = follow(nodes[chain[-1]])
    activation = nodes[chain[-1]].op
    assert isinstance(activation, Activation)
    if pool is not None and nodes[pool].op == _POOL and activation.monotone:
        chain.append(pool)
    return chain


def _is_batch_norm(node: Node) -> bool:
    op = node.op
    return isinstance(op, Norm) and op.dims == _BATCH_NORM_DIMS and op.affine and not op.fixed and op.rows is None


def _is_activation(node: Node) -> bool:
    return isinstance(node.op, Activation)


def _fuse(chain: list[Node]) -> Node:
    conv, norm, activation, *pool = chain
    assert isinstance(conv.op, Conv2d)
    assert isinstance(norm.op, Norm)
    assert isinstance(activation.op, Activation)
    op = ConvBlock(conv.op, norm.op.eps, activation.op, bool(pool), len(conv.inputs) == 3)
    return Node(
        op,
        (*conv.inputs, *norm.inputs[1:]),
        chain[-1].outputs,
        (*conv.needs, *norm.needs[1:]),
        (*conv.moves, *norm.moves[1:]),
        " + ".join(node.label for node in chain),
    )
