"""What all tests share: seeds, one thread, golden cases, memory poisoned before it is written, what is slow."""

from __future__ import annotations

import os
from pathlib import Path

# All of this is read when torch or Triton are imported, and by what tests start.
# Workers run side by side, one a core: one thread each. By itself a test has one, too, so that it gives the same bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# Compiled code is kept from run to run, by what it was made of.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{Path(__file__).resolve().parents[1]}/.pytest_cache/torchinductor")
os.environ.setdefault("FASTMETA_CACHE", f"{Path(__file__).resolve().parents[1]}/.pytest_cache/fastmeta")
os.environ.setdefault("TRITON_CACHE_DIR", f"{Path(__file__).resolve().parents[1]}/.pytest_cache/triton")

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import golden_cases
import pytest
import slow_table
import torch
from budget import Budget

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

torch.set_num_threads(1)
if not torch.cuda.is_available():  # Triton reads it when kernels are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "list the N tests that took most of the processors (unlike --durations, right on a busy machine too)"
    parser.addoption("--cpu-durations", type=int, default=0, metavar="N", help=help_text)


# Tests that `-m "not slow"` leaves out, and which of their parameters it keeps: of every family of kernels MAML, Adam,
# one odd shape and one golden case; of compiled code one convolution and one golden case. A row without a test fails.
_NOT_COMPILED = ("*-eager", "*-recompute", "*-chunked", "*-reference")
SLOW: dict[str, tuple[str, ...]] = {
    "tests/train/test_methods.py::test_trained_and_evaluated_on_characters": ("protonet", "metagan", "maml++"),
    "tests/train/test_methods.py::test_trained_on_sinusoids": ("cavia",),
    "tests/train/test_cli_unlabelled.py::test_ssl_text": (),
    "tests/train/test_cli_unlabelled.py::test_ssl_series": ("forecast-mlp",),
    "tests/engine/test_compiled.py::test_captured_tensors_through_the_compiler": (),
    "tests/kernels/test_kernels_conv_block.py::test_options": ("maml", "adam"),
    "tests/kernels/test_kernels_conv_block.py::test_shapes": ("stride 2, odd sides",),
    "tests/kernels/test_kernels_conv_block.py::test_golden": (),
    "tests/kernels/test_kernels_conv_block.py::test_images_of_miniimagenet_size": (),
    "tests/kernels/test_kernels_conv_block.py::test_several_programs_take_the_head": (),
    "tests/kernels/test_kernels_conv_block.py::test_residual_networks": ("{}",),
    "tests/kernels/test_kernels_conv_block.py::test_more_tiles_than_shares": (),
    "tests/kernels/test_kernels_conv_block.py::test_programs_may_run_in_any_order_and_give_the_same_bits": (),
    "tests/kernels/test_kernels_conv_block.py::test_gradients_of_task_losses_and_learners": (),
    "tests/kernels/test_kernels_conv_block.py::test_bfloat16_stores_operands_in_bfloat16": (),
    "tests/kernels/test_kernels_linear.py::test_programs_may_run_in_any_order_and_give_the_same_bits": (),
    "tests/kernels/test_kernels_linear.py::test_regression": ("sinusoid", "adam"),
    "tests/kernels/test_kernels_linear.py::test_classification": ("129 wide", "one sample of width 1"),
    "tests/kernels/test_kernels_linear.py::test_golden": ("mlp_classifier_maml_k2",),
    "tests/kernels/test_kernels_linear.py::test_siren": ("save-64",),
    "tests/kernels/test_kernels_mlp_loop.py::test_regression": ("sinusoid", "adam", "nesterov", "batches"),
    "tests/kernels/test_kernels_mlp_loop.py::test_classification": ("127 wide", "one sample of width 1"),
    "tests/kernels/test_kernels_mlp_loop.py::test_golden": ("mlp_classifier_maml_k2",),
    "tests/kernels/test_kernels_races.py::test_perceptrons": ("*-adam",),
    "tests/kernels/test_kernels_races.py::test_wide_perceptrons": (),
    "tests/kernels/test_kernels_races.py::test_layers": ("adam",),
    "tests/kernels/test_kernels_races.py::test_convolutions": ("adam",),
    "tests/kernels/test_kernels_races.py::test_shapes_of_convolutions": ("stride 2, odd sides",),
    "tests/kernels/test_kernels_races.py::test_a_barrier_that_is_taken_out_leaves_a_race": (
        "as in *",
        "the next layer*",
        "total.*",
    ),
    "tests/kernels/test_kernels_mlp_tiles.py::test_classification_by_one_warp": ("one sample of width 1",),
    "tests/kernels/test_kernels_mlp_tiles.py::test_regression_by_one_warp": ("adam", "nesterov"),
    "tests/kernels/test_kernels_mlp_tiles.py::test_three_products_of_tf32_are_as_good_as_float32": ("momentum",),
    "tests/engine/backends/test_taped.py::test_launches_made_again_train_as_new_ones_do": (
        "rates, first order, chunked",
    ),
    "tests/engine/backends/test_taped.py::test_parameters_in_other_memory_and_of_other_strides_are_read": (),
    "tests/engine/backends/test_taped.py::test_evaluation_has_a_tape_of_its_own_in_any_mode": (),
    "tests/engine/backends/test_taped.py::test_threads_take_turns": (),
    "tests/engine/backends/test_taped.py::test_without_memory_for_it_there_is_no_tape": (),
    "tests/algorithms/test_accumulate.py::test_kernels": ("reptile",),
    "tests/algorithms/test_accumulate.py::test_compiled": ("maml", "reptile", "meta-sgd"),
    "tests/engine/test_cuda_graph.py::test_kernels_are_replayed": ("reptile",),
    "tests/kernels/test_kernels_mlp_tiles.py::test_widths_that_fill_no_tile": ("odd-*",),
    "tests/kernels/test_kernels_mlp_tiles.py::test_gradients_of_rates_by_one_warp": ("sgd-*",),
    "tests/kernels/test_kernels_matrix.py::test_a_meta_step_and_learners": (
        "*-mlp_loop",
        "maml-*-linear",
        "maml-sgd-*",
    ),
    "tests/kernels/test_kernels_counts.py::test_no_two_programs_of_a_convolution_write_to_one_place": (),
    "tests/test_golden.py::test_compiled": (),
    "tests/test_types.py::test_a_type_checker_finds_wrong_calls_and_nothing_else": (),
    "tests/algorithms/test_golden_learned_rules.py::test_golden": _NOT_COMPILED,
    "tests/algorithms/test_golden_algorithms.py::test_rates_of_layers_and_steps": _NOT_COMPILED,
    "tests/algorithms/test_golden_algorithms.py::test_parameters_that_all_tasks_share": _NOT_COMPILED,
    "tests/algorithms/test_golden_algorithms.py::test_query_losses_of_every_step": _NOT_COMPILED,
    "tests/algorithms/test_golden_algorithms.py::test_gradients_of_the_support_set": _NOT_COMPILED,
    "tests/algorithms/test_maml_plus_plus.py::test_the_authors_system": _NOT_COMPILED,
    "tests/algorithms/test_cavia.py::test_as_public_implementations": _NOT_COMPILED,
    "tests/algorithms/test_imaml.py::test_as_public_implementations": _NOT_COMPILED,
    "tests/algorithms/test_data_weights.py::test_weights_as_public_implementations": _NOT_COMPILED,
    "tests/algorithms/test_data_weights.py::test_distilled_data_as_public_implementations": _NOT_COMPILED,
    "tests/algorithms/test_online.py::test_golden": ("eager", "recompute", "chunked", "reference"),
    "tests/algorithms/test_abml.py::test_golden": _NOT_COMPILED,
    "tests/algorithms/test_features.py::test_golden": _NOT_COMPILED,
    "tests/algorithms/test_proto_maml.py::test_golden": _NOT_COMPILED,
    "tests/algorithms/test_metagan.py::test_golden": _NOT_COMPILED,
    "tests/test_user_code.py::test_data_parallel_processes_equal_one_process_on_all_tasks": (),
    "tests/algorithms/test_algorithms.py::test_compiled": (),
    "tests/algorithms/test_algorithms.py::test_what_is_compiled_is_traced_exactly": (*("maml-sgd-*", "maml-*-eager"),),
    "tests/algorithms/test_algorithms.py::TestEveryAlgorithmInEveryMode::test_single_tasks_and_samples": (
        *("*-maml", "*-fomaml", "*-reptile", "sizes0-*"),
    ),
    "tests/algorithms/test_algorithms.py::test_same_as_eager": ("maml-*", "fomaml-*", "reptile-*", "*-sgd-*"),
    "tests/algorithms/test_algorithms.py::test_float32_errs_no_more_than_autograd_does": (
        *("maml-*", "fomaml-*", "reptile-*", "*-sgd-mlp"),
    ),
    "tests/algorithms/test_policy.py::test_compiled": (),
    "tests/algorithms/test_algorithms.py::test_compiled_convolutional_network_of_strided_images": (),
    "tests/engine/test_batch.py::test_finite_tasks_survives_the_compiler": (),
    "tests/engine/test_cuda_graph.py::test_a_compiled_step_is_replayed": (),
    "tests/engine/test_workers.py::test_learners_side_by_side": ("eager",),
    "tests/train/test_cli_unlabelled.py::test_ssl_images_with_the_network_of_its_preset": (),
    "tests/train/test_cli_unlabelled.py::test_cluster": (),
    "tests/train/test_cli_unlabelled.py::test_without_scikit_learn_there_is_no_probe_but_the_rest": (),
    "tests/train/test_clustering.py::test_the_step_size_is_the_one_that_clusters_training_classes_best": (),
    "tests/train/test_cli.py::test_as_a_module": (),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    if not SHARED.is_dir():  # left out, not skipped: stand-ins of these files are tested everywhere
        real = [item for item in items if "shared" in getattr(item, "fixturenames", ())]
        items[:] = [item for item in items if item not in real]
        config.hook.pytest_deselected(items=real)
    for name in ("nightly", "gpu_full"):
        if name not in config.getoption("-m", ""):
            long = [item for item in items if item.get_closest_marker(name)]
            items[:] = [item for item in items if not item.get_closest_marker(name)]
            config.hook.pytest_deselected(items=long)
    whole = [] if config.getoption("lf", False) else [config.invocation_params.dir / arg for arg in config.args]
    problems = slow_table.mark(items, SLOW, root=ROOT, whole=whole)
    if problems:
        items.append(slow_table.OutOfDate.from_parent(session, name="SLOW in tests/conftest.py", problems=problems))


def pytest_configure(config: pytest.Config) -> None:
    # torch.compile's and forward-mode autograd's own imports, the first time they are used
    deprecated = r"`torch\.jit\.script(_method)?` is (deprecated|not supported)"
    config.addinivalue_line("filterwarnings", f"ignore:{deprecated}:DeprecationWarning")
    # CUDA builds of torch 2.9 and 2.10, where TF32 is switched in the way that older versions know, and the compiler on
    # a GPU, where it is off; precision is the learner's
    for of_tf32 in ("Please use the new API settings to control TF32", "TensorFloat32 tensor cores"):
        config.addinivalue_line("filterwarnings", f"ignore:{of_tf32}:UserWarning")
    enforced = os.environ.get("CI", "").lower() in {"1", "true"}
    config.pluginmanager.register(Budget(enforced=enforced, slowest=config.getoption("--cpu-durations")))
    config.addinivalue_line("markers", "slow: of the table SLOW in tests/conftest.py; continuous integration runs them")
    config.addinivalue_line("markers", "proof: new plans are held against plain autograd, as they are for users")
    config.addinivalue_line("markers", 'golden(pattern): which golden cases a test takes, such as "conv4*"')


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `golden` runs once for every golden case that its `golden` marker admits."""
    if "golden" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("golden")
    pattern = marker.args[0] if marker else "*"
    names = golden_cases.names(pattern)
    if not names:
        raise pytest.UsageError(f"{metafunc.function.__name__}: no golden case matches {pattern!r}")
    metafunc.parametrize("golden", names, indirect=True)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> golden_cases.Case:
    """One golden case: `case.spec`, `case["support_x"]`, `case.model()`, `case.grad`, `case.adapted`."""
    (case,) = golden_cases.cases(request.param)
    return case


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository: files of public data sets. Without it these tests are left out."""
    return SHARED


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _proof_where_it_is_asked_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests hold results against the reference themselves, and must see a wrong plan rather than the plain loop in
    its place. `@pytest.mark.proof` leaves the default as users have it."""
    if request.node.get_closest_marker("proof") is None:
        from fastmeta.algorithms.base import MetaLearner

        monkeypatch.setitem(MetaLearner.__init__.__kwdefaults__, "proof", "off")  # pyright: ignore[reportArgumentType]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that whatever reads an element nobody wrote shows it."""

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
            fresh = allocate(*args, **kwargs)
            with torch.no_grad():
                return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

        return wrapper

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poisoned(getattr(torch.Tensor, name)))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` threads of operations inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks of a dozen units lose more to a second thread than they win."""
    with threads(1):
        yield


@pytest.fixture
def three_threads() -> Iterator[None]:
    """More than one, on whatever machine."""
    with threads(3):
        yield


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """`compile=True` without the compiler; the list holds the graphs that were traced, of which there must be one."""
    from traced import trace_alone

    made = trace_alone(monkeypatch)
    yield made
    assert made, "nothing was compiled"


@pytest.fixture
def wide_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of convolutions as large as what they are of: the interpreter takes its time by program, not by size."""
    from fastmeta.kernels import conv_stage, tiles  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    monkeypatch.setattr(conv_stage, "again_tiles", tiles.conv_weight_tiles)
    monkeypatch.setattr(tiles, "PIXEL_VALUES", 2**18)
    monkeypatch.setattr(tiles, "PROGRAMS", 1)
    monkeypatch.setattr(tiles, "_conv_rows", lambda dual: 4096)
    monkeypatch.setattr(tiles, "_depth", lambda precision: 4096)
    monkeypatch.setattr(tiles, "_taps_depth", lambda precision, taps, unit: min(tiles.block(taps * unit), 1024))
