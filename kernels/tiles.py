"""Tile sizes and warps, from one deterministic rule; no tuning at run time, so two runs launch the same code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.runtime.driver import driver

from .description import Conv, block

MOST = 128
"""Widest layer and most samples of `mlp_loop`: a weight block of 128 × 128 in float32 fills 64 kB of shared memory, and
a product stages two."""

DEEPEST = 8
"""Layers of `mlp_loop`: kernels are unrolled over them, and eight take the compiler a minute."""

MOST_OUTPUTS = 1024
"""Of the last layer where layers run one by one: a program of `loss_kernel` holds four samples' outputs whole."""


STAGES = 1
"""Loads ahead of their products. A loop here reads what its last round wrote, so there is nothing to load ahead."""


MOST_REGISTERS = 255
"""Of a thread. Said aloud where activations live in scratch and where the sum of a layer's kernel is short, as
otherwise the assembler may spill a little to fit more programs on a multiprocessor (1-40-40-1 on sm_90, plain
multiply-adds: 128 registers and 32 bytes of stack; 2 → 256 on sm_80: 40 registers and 4 bytes)."""


def _arch() -> int:
    """Of the GPU that kernels are compiled for: 80, 90, 100."""
    target: Any = driver.active.get_current_target()
    return target.arch


PROCESSORS = 132
"""Multiprocessors of an H200."""


def streams(blocks: tuple[int, ...], states: int) -> bool:
    """Whether activations live in scratch: of layers and samples padded to `blocks`, an optimiser with `states`.

    Otherwise they live in registers, which spares a meta-step their way through the cache. Of 128-128-128-5 with 128
    samples that leaves 4.9 kB on the stack (adjoint, sm_90, float32); at 64 wide, with SGD none, with momentum 96 to
    504 bytes and with Adam up to 48 (1-40-40-1). From the fifth layer on there are too many of them.
    """
    return max(blocks) > 64 or len(blocks) > 6 or (max(blocks) > 32 and states > 0)


class LoopTiles(NamedTuple):
    """Of a program of `mlp_loop`, which is a task: warps, columns of the tiles of each layer's activations, the inputs'
    first, and whether activations live in scratch."""

    warps: int
    columns: tuple[int, ...]
    streams: bool


def loop_tiles(dims: tuple[int, ...], samples: int, states: int, tasks: int) -> LoopTiles:
    """For so many tasks of a perceptron with layers of these widths, on so many samples at a time."""
    blocks, rows = tuple(map(block, dims)), block(samples)
    if streams((*blocks, rows), states):
        return LoopTiles(4 if max(*blocks, rows) <= 16 else 8, blocks, streams=True)
    warps = loop_warps(dims, samples, tasks)
    return LoopTiles(warps, tile_columns(dims, 16 if warps == 1 else max(blocks)), streams=False)


def loop_warps(dims: tuple[int, ...], samples: int, tasks: int) -> int:
    """As many as leave all tasks resident at once: the fewer tasks, the more warps share the work of each.

    A step of 1-40-40-1 (sm_90, float32) is 3,091 instructions of each of eight warps, of which one program fits a
    multiprocessor; 4,356 of four, of which two; 9,385 of one, of which eight. A warp takes at least 16 × 8 results
    of the widest layer. What a warp alone holds are six tiles of activations and their tangents. No program has fewer
    than `FEWEST_WARPS`.
    """
    rows, widest = block(samples), max(map(block, dims))
    useful = rows * widest // 128
    held = rows // 16 * sum(-(-width // 16) for width in dims[1:] if width > 1)
    warps = 8 if tasks <= PROCESSORS or held > MOST_TILES else 4 if tasks <= 2 * PROCESSORS else 1
    return min(max(warps, FEWEST_WARPS), useful)


FEWEST_WARPS = 8
"""Until a GPU has timed fewer (`python -m bench gpu`, its sweep): one warp leaves 360 bytes of the adjoint of 1-40-40-1
on the stack, and its code takes half a minute to compile."""

MOST_TILES = 6
"""[16, 16], of the activations that a program of one warp holds in registers, each with its tangent: with ten the
adjoint leaves 2.2 kB on the stack (6-40-20 on 20 samples, sm_90, Triton 3.6), with six 360 bytes (1-40-40-1)."""


def tile_columns(dims: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Columns of a tile of each layer's activations. The outputs are one tile, as a loss takes whole rows; one value,
    and two inputs, are columns of their own (`mlp_blocks.py`)."""
    columns = [1 if dims[0] <= 2 else min(block(dims[0]), most)]
    for width in dims[1:-1]:
        columns.append(1 if width == 1 and columns[-1] > 1 else min(block(width), most))
    columns.append(1 if dims[-1] == 1 and columns[-1] > 1 else block(dims[-1]))
    return tuple(columns)


def dot_precision(precision: str) -> str:
    """How a kernel of `mlp_loop` multiplies blocks of float32: `input_precision` of `tl.dot`, or "bf16" for rounded
    operands; float32 is three products of tf32 (`mlp_blocks.py`)."""
    if knobs.runtime.interpret:
        return "ieee"  # the interpreter multiplies in float32 whatever it is told, and bfloat16's bit patterns
    return {"float32": "tf32x3", "tf32": "tf32", "bfloat16": "bf16"}[precision]


LAYER_STAGES = 2
"""Of `linear_forward_kernel` and `linear_backward_kernel`: while one block is multiplied the next is loaded."""

WEIGHT_STAGES = 3
"""Of the kernels that make weights' gradients."""


def _weight_warps(precision: str) -> int:
    """Of those kernels. Warp groups multiply tf32 only where what is summed over lies side by side in shared memory; so
    they copy 4 bytes at a time from gradients, where it does not (sm_90). Two warps multiply for themselves, and copy
    16. Three tf32 products each take too many registers for two (100 bytes of stack), and are copied as they come."""
    return 2 if precision == "tf32" else 4


class Tiles(NamedTuple):
    """A result's tile, and how far a program goes at a time along what is summed over; warps, stages, precision."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    precision: str
    most_registers: int | None = None  # the assembler's choice

    def grid(self, tasks: int, rows: int, columns: int) -> tuple[int]:
        """Programs for one result [rows, columns] a task."""
        return (tasks * -(-rows // self.rows) * -(-columns // self.columns),)

    def constants(self, rows: str, columns: str, depth: str) -> dict[str, Any]:
        """The kernel's compile-time arguments, of these names."""
        return {
            rows: self.rows, columns: self.columns, depth: self.depth, "PRECISION": self.precision,
            "num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.most_registers,
        }  # fmt: skip


def operand_type(precision: str) -> torch.dtype:
    """Of stored operands of products: activations and cotangents; also of a convolution's pre-activations. A linear
    layer's stay float32: a sine of 30 z would lose its phase."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


_layer_precision = dot_precision


def _generation() -> int:
    """Of the GPU's matrix instructions: 8, 9 or 10; 9 in the interpreter."""
    return 9 if knobs.runtime.interpret else _arch() // 10


def _depth(precision: str) -> int:
    """Before sm_90 operands of matrix instructions are registers, and tf32x3 has six of them: 128 × 128 tiles leave
    4,880 bytes on the stack at a depth of 32, none at 16."""
    return 16 if precision == "float32" and _generation() < 9 else 32


def layer_tiles(precision: str, samples: int, summed: int, columns: int, *, dual: bool) -> Tiles:
    """Of the kernels that make [samples, columns] of every task from products over `summed` values.

    128 × 128 asks the second-level cache for half the bytes of 64 × 64, which is what spills leave (256 → 256, sines,
    bytes of stack beyond those of a sine):

    - with tangents there are two results to hold: 48 with 128 rows on sm_90 (Triton 3.6, float32), 24 on sm_80;
    - where the sum is one block, what the result is joined with is loaded before the products: 256 (256 → 3, sm_90);
    - on sm_100 Triton 3.6 gives eight warps 128 registers each: 104, and with four warps and 128 rows 24.
    """
    depth = min(block(summed), _depth(precision))
    short, tensor_memory = summed <= depth, _generation() >= 10
    rows = cols = 64 if short or dual or tensor_memory else 128
    if tensor_memory and dual and not short and precision == "float32":
        cols = 32  # 24 bytes with 64
    rows, cols = min(block(samples), rows), min(block(columns), cols)
    warps = 8 if rows * cols >= 4096 and not tensor_memory else 4
    registers = MOST_REGISTERS if short or tensor_memory else None
    return Tiles(rows, cols, depth, warps, LAYER_STAGES, _layer_precision(precision), registers)


def weight_tiles(precision: str, samples: int, inputs: int, outputs: int) -> Tiles:
    """Of `linear_weight_kernel`: 64 × 64, or a layer of 256 × 256 gives too few programs (256 for 16 tasks)."""
    depth = min(block(samples), _depth(precision))
    rows, columns = min(block(outputs), 64), min(block(inputs), 64)
    precise, registers = _layer_precision(precision), None if _generation() == 9 else MOST_REGISTERS
    return Tiles(rows, columns, depth, _weight_warps(precision), WEIGHT_STAGES, precise, registers)


def loss_tiles(classes: int) -> tuple[int, int]:
    """Samples a program of `loss_kernel` takes, all of whose outputs it holds, and its warps."""
    return max(1, min(128, 4096 // block(classes))), 4


MEAN_TASKS = 128
"""Whose mean one launch takes. Of more, every share of so many leaves sums, and another launch adds those."""


def mean_tiles(tasks: int) -> tuple[int, dict[str, Any]]:
    """Shares of the tasks in a launch of `mean_kernel`, and its compile-time arguments, which hardly depend on how many
    tasks there are. A thread has 32 values at a time on their way; 10,000 tasks of 1,764 values are 1,106 programs."""
    rows = min(1 << (tasks - 1).bit_length(), 32)
    each = -(-min(tasks, MEAN_TASKS) // rows)
    return -(-tasks // MEAN_TASKS), {"EACH": each, "BT": rows, "BLOCK": 128, "num_warps": 4}


class PixelTiles(NamedTuple):
    """Rows and channels of a tile of what goes over pixels without a product."""

    rows: int
    columns: int
    warps: int
    most_registers: int | None = None  # as of `Tiles`

    def grid(self, tasks: int, rows: int, columns: int) -> tuple[int]:
        """As `Tiles.grid`."""
        return (tasks * -(-rows // self.rows) * -(-columns // self.columns),)

    def constants(self, rows: str, columns: str) -> dict[str, Any]:
        """The kernel's compile-time arguments, of these names."""
        own = {"num_warps": self.warps, "num_stages": 1, "maxnreg": self.most_registers}
        return {rows: self.rows, columns: self.columns, **own}


PIXEL_VALUES = 2048
"""Of a tile of what goes over pixels without a product: 16 a thread."""


def pixel_tiles(rows: int, columns: int, *, much: bool = False) -> PixelTiles:
    """64 channels at a time are two lines of 128 bytes. Where there is `much` to hold, products or tangents of
    cotangents, tiles are half as large: 80 bytes of stack otherwise on sm_90 (84×84×3→32, tangents, tf32), 8 on
    sm_80."""
    across = min(block(columns), 64)
    values = PIXEL_VALUES // 2 if much else PIXEL_VALUES
    return PixelTiles(min(block(rows), values // across), across, 4, MOST_REGISTERS if much else None)


MOST_SHARES = 32
"""Of a task's pixels, each of which leaves parts of statistics: whoever wants them joins them in one block."""


def _shares(rows: int, tile: int, most: int) -> tuple[int, int]:
    tiles = -(-rows // tile)
    each = -(-tiles // max(1, min(tiles, most)))
    return -(-tiles // each), each


def pixel_shares(rows: int, tile: int) -> tuple[int, int]:
    """Shares of so many rows of a task, each of which leaves parts, and tiles of each."""
    return _shares(rows, tile, MOST_SHARES)


MOST_TERMS = 16
"""Of a weight's gradient: one program adds them up."""

PROGRAMS = 528
"""Four for each multiprocessor of an H200: from there on a weight's gradient is not shared out further."""


@contextmanager
def shared_among(programs: int) -> Iterator[None]:
    """Inside, sums over pixels are shared out until there are so many programs: for counts of a part of a batch, whose
    own programs are fewer."""
    global PROGRAMS  # noqa: PLW0603  one rule for the whole process
    before, PROGRAMS = PROGRAMS, programs
    try:
        yield
    finally:
        PROGRAMS = before


ROW_BLOCK = 2048
"""Values of a row that a program takes at a time which looks for what is not finite."""


def row_shares(size: int, tasks: int) -> tuple[int, dict[str, Any]]:
    """Programs of such a launch over a row of so many values of every task, and its compile-time arguments."""
    shares, each = _shares(size, ROW_BLOCK, -(-PROGRAMS // tasks)) if size else (1, 0)
    options = {"SIZE": size, "SHARES": shares, "EACH": each, "BS": 1 << (shares - 1).bit_length()}
    return tasks * shares, {**options, "BLOCK": ROW_BLOCK, "num_warps": 4}


def weight_shares(rows: int, tile: int, programs: int) -> tuple[int, int]:
    """Shares of so many rows, and tiles of each, where there are so many programs before rows are shared out."""
    return _shares(rows, tile, min(MOST_TERMS, -(-PROGRAMS // programs)))


MOST_VALUES_AGAIN = 32
"""Of a filter that is convolved again: one block of a product."""


def convolves_again(conv: Conv) -> bool:
    """Whether a first block's z is made from the image wherever it is wanted, rather than stored.

    z is written once and read twice, the image read three times instead of once; and a norm's sums, which the stage
    above makes, must find what the winners picked.
    """
    few = conv.kernel**2 * conv.channels <= MOST_VALUES_AGAIN
    found = conv.pool == "max" or not conv.norm
    out = conv.out[0] * conv.out[1] * conv.filters
    return few and found and 2 * conv.height * conv.width * conv.channels < 3 * out


def again_tiles(precision: str, pixels: int, filters: int, taps: int, channels: int) -> Tiles:
    """Of `block_weight_kernel`, which makes dz besides. 32 pixels at a time take 288 bytes of stack (84×84×3→32,
    tangents, sm_90, float32), 64 filters 620 on sm_80 (28×28×1→64), 32 filters 8 on sm_100."""
    tiles = conv_weight_tiles(precision, pixels, filters, taps, channels)
    rows = min(tiles.rows, {8: 32, 9: 64}.get(_generation(), 16))
    return tiles._replace(rows=rows, depth=16, warps=4, stages=1, most_registers=MOST_REGISTERS)


HEAD_COLUMNS = 128
"""Of its input that a program of `head_kernel` takes at most."""


class HeadTiles(NamedTuple):
    """Pixels of every image that a program of `head_kernel` takes; samples, outputs and inputs at a time; precision.

    All registers may be taken, or the assembler spills 8 bytes to have 72 (64→20, sm_100, Triton 3.6, bfloat16).
    """

    per: int
    samples: int
    outputs: int
    inputs: int
    warps: int
    precision: str


def head_tiles(precision: str, samples: int, pixels: int, channels: int, outputs: int) -> HeadTiles | None:
    """None where single launches do better: with many outputs or inputs, all of which every program goes over."""
    per = max(1, HEAD_COLUMNS // 2 // channels)
    if outputs > HEAD_COLUMNS or channels > HEAD_COLUMNS or -(-pixels // per) > MOST_SHARES:
        return None
    rows = min(block(samples), 32)
    return HeadTiles(per, rows, block(outputs), min(block(pixels * channels), 32), 4, _layer_precision(precision))


def _taps_depth(precision: str, taps: int, unit: int) -> int:
    """Values at a time along taps × `unit` channels: of one tap where that divides evenly, for the widest loads."""
    most = _depth(precision)
    for depth in (most, 16):
        if unit % depth == 0:
            return depth
    return min(block(taps * unit), most)


CONV_COLUMNS = 64
"""Most channels of a convolution's tile."""


def _conv_rows(dual: bool) -> int:
    """Pixels of a convolution's tile; dual ones have two results to hold, which takes 44 bytes of stack on sm_80 with
    64 pixels (28×28×1→64, float32)."""
    return {8: 64, 9: 128}.get(_generation(), 64) // (2 if dual else 1)


def conv_tiles(precision: str, pixels: int, taps: int, unit: int, columns: int, *, dual: bool) -> Tiles:
    """Of the convolutions that make [pixels, columns] of every task from products over taps × `unit` channels.

    Eight warps but on sm_100, where each would have 128 registers (8 bytes of stack, 42×42×32→32, float32). Before and
    after sm_90 all registers are asked for: 80 and 12 bytes of stack otherwise (64 → 64, sm_80).
    """
    depth = _taps_depth(precision, taps, unit)
    if dual and (precision == "float32" or _generation() >= 10):
        depth = 16  # with 32, 240 bytes of stack on sm_90 (14×14×64→64, Triton 3.6), 48 on sm_100 (84×84×3→32)
    rows, columns = min(block(pixels), _conv_rows(dual)), min(block(columns), CONV_COLUMNS)
    warps = 8 if rows * columns >= 4096 and _generation() < 10 else 4
    registers = None if _generation() == 9 else MOST_REGISTERS
    if _generation() == 9 and precision == "float32" and columns == CONV_COLUMNS and not dual:
        registers = 128  # or 130, with which no two programs share a multiprocessor; 32 columns leave 12 bytes of stack
    return Tiles(rows, columns, depth, warps, LAYER_STAGES, _layer_precision(precision), registers)


def image_tiles(precision: str, pixels: int, taps: int, filters: int, channels: int, *, dual: bool) -> Tiles:
    """Of `conv_image_kernel`, which may have dz to make: 8 bytes of stack with 128 registers (sm_90, float32)."""
    tiles = conv_tiles(precision, pixels, taps, filters, channels, dual=dual)
    return tiles._replace(most_registers=None if _generation() == 9 else MOST_REGISTERS)


def dz_tiles(filters: int, *, dual: bool) -> dict[str, int]:
    """Pixels and filters at a time of dz in `conv_image_kernel`: more take more registers than its products (174 with
    32 × 64 tangents, sm_90, tf32, and so one program for two on a multiprocessor)."""
    pixels, most = (32, 32) if dual else (16, 64)
    return {"BZ": pixels, "BO": min(block(filters), most)}


def conv_weight_tiles(precision: str, pixels: int, filters: int, taps: int, channels: int) -> Tiles:
    """Of a weight's gradient: [filters, taps × channels] from products over pixels."""
    columns = next((n for n in (64, 32, 16) if channels % n == 0), min(block(taps * channels), 64))
    depth = min(block(pixels), _depth(precision))
    precise, registers = _layer_precision(precision), None if _generation() == 9 else MOST_REGISTERS
    warps = _weight_warps(precision)
    return Tiles(min(block(filters), 64), columns, depth, warps, WEIGHT_STAGES, precise, registers)
