"""Every family of tasks that the commands know: the one place that says what it is, reads, and is learned by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch.nn import functional as F

from .clustering import ClusteringLoss
from .losses import Loss
from .tasks import (
    UMTRA,
    CACTUs,
    Characters,
    ClassEpisodes,
    FewShot,
    Forecast,
    Glyphs,
    Images,
    MaskedText,
    SelfSupervised,
    Series,
    Sinusoid,
    TaskFamily,
    Text,
    draw_glyphs,
    draw_waves,
    load_images,
    load_omniglot,
    load_series,
    load_text,
)
from .tasks.cactus import Clustered
from .tasks.image_sets import Unlabelled

if TYPE_CHECKING:
    from .config import TaskConfig

Source = Characters | Images | Clustered | Series | Text


class _Build(Protocol):
    def __call__(self, part: TaskConfig, source: Source | None, device: torch.device, /) -> TaskFamily: ...


class _Tests(Protocol):
    def __call__(
        self, part: TaskConfig, source: Source | None, device: torch.device, /
    ) -> Mapping[str, TaskFamily]: ...


@dataclass(frozen=True)
class Family:
    """A family of tasks as the commands see it.

    Attributes:
        summary: one line for a person.
        models: networks that fit it.
        settings: what of `TaskConfig` it reads, beside `shots` and `queries`.
        data: what `--data` names; empty where it takes none.
        load: reads the data. Without paths: made-up data, where `optional` says so.
        shape: of the data, as `build_model` takes it.
        train: the tasks to learn from.
        tests: what to score on, by title: the tasks of unseen data where the data is split, else fresh ones.
        pretrain: tasks for plain pre-training; None where tasks share no labels, so that there is nothing to pre-train.
        loss: inner and outer.
        optional: it makes its own data where none is given.
        report: "scores" prints means; "curves" compares starts over adaptation steps; "clusters" scores clusters.
    """

    summary: str
    models: tuple[str, ...]
    settings: frozenset[str]
    data: str
    load: Callable[[TaskConfig, Sequence[str]], Source | None]
    shape: Callable[[TaskConfig, Source | None], tuple[int, ...]]
    train: _Build
    tests: _Tests
    pretrain: _Build | None = None
    loss: Loss = F.cross_entropy
    optional: bool = True
    report: Literal["scores", "curves", "clusters"] = "curves"

    @property
    def percent(self) -> bool:
        """Whether its score is an accuracy; else it is a mean squared error."""
        return self.loss is F.cross_entropy


_NETWORK = {"model", "channels", "zero_head"}
_FEW_SHOT = {*_NETWORK, "ways", "train_shots", "augment", "augment_classes", "bn_statistics"}
_IMAGES = {"image_size", "held_out"}
_CONV = ("conv4", "conv4-flat", "conv4-pooled", "resnet18")


# Sinusoids and Omniglot. ------------------------------------------------------------------------------------------


def _sinusoids(part: TaskConfig, source: Source | None, device: torch.device) -> Sinusoid:
    return Sinusoid(shots=part.shots, queries=part.queries, device=device)


def _load_characters(part: TaskConfig, paths: Sequence[str]) -> Characters:
    return load_omniglot(paths).select(keep=part.alphabets, drop=part.exclude_alphabets)


def _characters(part: TaskConfig, source: Source | None, device: torch.device, *, training: bool = True) -> FewShot:
    assert isinstance(source, Characters)
    return FewShot(
        source,
        ways=part.ways,
        shots=(part.train_shots or part.shots) if training else part.shots,
        queries=part.queries,
        within_alphabet=part.within_alphabet,
        rotations=part.rotations and training,
        mirrored=part.mirrored and training,
        augment=part.augment if training else 0.0,
        augment_classes=part.augment_classes if training else 0.0,
        device=device,
    )


# Images. ----------------------------------------------------------------------------------------------------------


def _load_images(part: TaskConfig, paths: Sequence[str]) -> Images:
    size = part.image_size or (part.shape[1] if part.shape else None)
    return load_images(paths, size=size) if paths else draw_glyphs(size=size or 28)


def _image_shape(part: TaskConfig, source: Source | None) -> tuple[int, ...]:
    return (1, 28, 28) if source is None or isinstance(source, Characters) else _images(source).shape


def _images(source: Source | None) -> Images:
    source = source.images if isinstance(source, Clustered) else source
    assert isinstance(source, Images)
    return source


def _by_class(part: TaskConfig, source: Source | None) -> tuple[Images, Images]:
    """Images to learn from, and images of other classes to score on, where labels tell classes apart."""
    images = _images(source)
    if images.labels is None or not part.held_out:
        return images, images
    return images.split_classes(part.held_out)


def _by_image(part: TaskConfig, source: Source | None) -> tuple[Images, Images]:
    images = _images(source)
    return images.split(part.held_out) if part.held_out else (images, images)


def _glyphs(part: TaskConfig, source: Source | None, device: torch.device, *, training: bool = True) -> Glyphs:
    return Glyphs(
        ways=part.ways,
        shots=(part.train_shots or part.shots) if training else part.shots,
        queries=part.queries,
        size=part.image_size or 28,
        device=device,
    )


def _labelled(part: TaskConfig, images: Images, device: torch.device) -> ClassEpisodes:
    shots, queries = part.shots, part.queries
    return ClassEpisodes(images.table(), ways=part.ways, shots=shots, queries=queries, device=device)


def _umtra(part: TaskConfig, source: Source | None, device: torch.device) -> UMTRA:
    images, _ = _by_class(part, source)
    return UMTRA(images, ways=part.ways, queries=part.queries, augment=part.augment or 1.0, device=device)


def _label_tests(part: TaskConfig, source: Source | None, device: torch.device) -> dict[str, TaskFamily]:
    images, unseen = _by_class(part, source)
    if images.labels is None:
        return {"tasks of its own, as the images have no labels": UMTRA(images, ways=part.ways, device=device)}
    title = "labelled episodes" if unseen is images else "labelled episodes of unseen classes"
    return {f"{title}, {part.ways}-way {part.shots}-shot": _labelled(part, unseen, device)}


def training_images(part: TaskConfig, source: Source | None) -> Images:
    """What the clusters of CACTUs are made of."""
    return _by_class(part, source)[0].unlabelled()


def _cactus(part: TaskConfig, source: Source | None, device: torch.device) -> CACTUs:
    if not isinstance(source, Clustered):
        raise ValueError("task cactus needs clusters of its images: fastmeta.pipeline.clustered makes them")
    return CACTUs(
        training_images(part, source),
        source.partitions,
        ways=part.ways,
        shots=part.train_shots or part.shots,
        queries=part.queries,
        augment=part.augment,
        augment_classes=part.augment_classes,
        device=device,
    )


def _pretexts(part: TaskConfig, source: Source | None, device: torch.device) -> SelfSupervised:
    images, _ = _by_image(part, source)
    return SelfSupervised(
        images,
        part.pretexts,
        ways=part.ways,
        shots=part.train_shots or part.shots,
        queries=part.queries,
        augment=part.augment,
        device=device,
    )


def _one_pretext(part: TaskConfig, source: Source | None, device: torch.device) -> SelfSupervised:
    """Its transformations keep their numbers from task to task."""
    images, _ = _by_image(part, source)
    ways, counts = part.ways, {"shots": part.shots, "queries": part.queries}
    return SelfSupervised(
        images, part.pretexts[:1], ways=ways, shuffle=False, augment=part.augment, device=device, **counts
    )


def _pretext_tests(part: TaskConfig, source: Source | None, device: torch.device) -> dict[str, TaskFamily]:
    _, unseen = _by_image(part, source)
    ways, shots, queries = part.ways, part.shots, part.queries
    new = SelfSupervised(unseen, (part.new_pretext,), ways=ways, shots=shots, queries=queries, device=device)
    tests: dict[str, TaskFamily] = {f"new pretext {part.new_pretext}, {ways}-way {shots}-shot": new}
    if unseen.labels is not None:
        tests[f"labels, {ways}-way {shots}-shot"] = _labelled(part, unseen, device)
    return tests


def _image_sets(part: TaskConfig, source: Source | None, device: torch.device) -> Unlabelled:
    images, _ = _by_class(part, source)
    return Unlabelled(
        ClassEpisodes(
            images.table(),
            ways=part.ways,
            shots=part.shots,
            queries=part.queries,
            augment=part.augment,
            augment_classes=part.augment_classes,
            device=device,
        )
    )


def _anomalies(part: TaskConfig, source: Source | None, device: torch.device) -> ClassEpisodes:
    """Episodes of one class more than there are clusters: the last one is the anomaly."""
    _, unseen = _by_class(part, source)
    ways, shots, queries = part.ways + 1, part.shots, part.queries
    return ClassEpisodes(unseen.table(), ways=ways, shots=shots, queries=queries, device=device)


# Series and text. -------------------------------------------------------------------------------------------------


def _load_series(part: TaskConfig, paths: Sequence[str]) -> Series:
    return load_series(paths, group=part.group) if paths else draw_waves()


def _series(part: TaskConfig, source: Source | None, device: torch.device, *, training: bool = True) -> Forecast:
    assert isinstance(source, Series)
    if part.held_out:
        source = source.split(part.held_out)[not training]
    window, horizon = part.window, part.horizon
    return Forecast(source, window=window, horizon=horizon, shots=part.shots, queries=part.queries, device=device)


def _series_shape(part: TaskConfig, source: Source | None) -> tuple[int, ...]:
    assert isinstance(source, Series)
    return part.window, part.horizon, source.features


def _load_text(part: TaskConfig, paths: Sequence[str]) -> Text:
    if not paths:
        raise ValueError("task ssl-text needs text: name UTF-8 files or folders with --data")
    return load_text(paths, vocabulary=part.vocabulary or None)


def _text(part: TaskConfig, source: Source | None, device: torch.device, *, training: bool = True) -> MaskedText:
    assert isinstance(source, Text)
    if part.held_out:
        source = source.split(part.held_out)[not training]
    return MaskedText(
        source,
        length=part.length,
        passage=part.passage,
        masked=part.masked,
        shots=part.shots,
        queries=part.queries,
        device=device,
    )


def _text_shape(part: TaskConfig, source: Source | None) -> tuple[int, ...]:
    assert isinstance(source, Text)
    return source.symbols, part.length


_IMAGE_DATA = "folders or zip files of images, Omniglot's, CIFAR-10's .bin files or a .npy array; none: random glyphs"

FAMILIES: dict[str, Family] = {
    "sinusoid": Family(
        "sine curves of random amplitude and phase (Finn et al. 2017)",
        ("sinusoid-mlp",),
        frozenset({"model"}),
        "",
        load=lambda part, paths: None,
        shape=lambda part, source: (),
        train=_sinusoids,
        tests=lambda part, source, device: {"new sinusoids": _sinusoids(part, source, device)},
        loss=F.mse_loss,
        report="scores",
    ),
    "omniglot": Family(
        "few-shot classification of handwritten characters (Lake et al. 2015)",
        _CONV,
        frozenset({*_FEW_SHOT, "within_alphabet", "rotations", "mirrored", "alphabets", "exclude_alphabets"}),
        "Omniglot's zip files, or folders they unpack to",
        load=_load_characters,
        shape=_image_shape,
        train=_characters,
        tests=lambda part, source, device: {
            "new episodes of the characters trained on": _characters(part, source, device, training=False)
        },
        optional=False,
        report="scores",
    ),
    "glyphs": Family(
        "few-shot classification of random stroke glyphs, of unlimited classes",
        _CONV,
        frozenset({*_FEW_SHOT, "image_size"} - {"augment", "augment_classes"}),
        "",
        load=lambda part, paths: None,
        shape=lambda part, source: (1, part.image_size or 28, part.image_size or 28),
        train=_glyphs,
        tests=lambda part, source, device: {"new glyphs": _glyphs(part, source, device, training=False)},
    ),
    "umtra": Family(
        "few-shot tasks from images without labels, by augmentation (Khodadadeh et al. 2019)",
        _CONV,
        frozenset({*_FEW_SHOT, *_IMAGES} - {"train_shots", "augment_classes"}),
        _IMAGE_DATA,
        load=_load_images,
        shape=_image_shape,
        train=_umtra,
        tests=_label_tests,
    ),
    "cactus": Family(
        "few-shot tasks from images without labels, by clustering an embedding (Hsu et al. 2019)",
        _CONV,
        frozenset({*_FEW_SHOT, *_IMAGES, "clusters", "partitions", "embedding", "latent"}),
        _IMAGE_DATA,
        load=_load_images,
        shape=_image_shape,
        train=_cactus,
        tests=_label_tests,
    ),
    "cluster": Family(
        "clustering autoencoder over small unlabelled image sets of few classes (after Xie et al. 2016)",
        ("autoencoder",),
        frozenset({*_IMAGES, "model", "channels", "latent", "ways", "augment", "augment_classes"}),
        _IMAGE_DATA,
        load=_load_images,
        shape=_image_shape,
        train=_image_sets,
        tests=lambda part, source, device: {"unseen classes": _anomalies(part, source, device)},
        pretrain=_image_sets,
        loss=ClusteringLoss(),
        report="clusters",
    ),
    "ssl-images": Family(
        "which transformation was applied: rotation, patch position, order of tiles or colours, zoom",
        _CONV,
        frozenset({*_FEW_SHOT, *_IMAGES, "pretexts", "new_pretext"} - {"augment_classes"}),
        _IMAGE_DATA,
        load=_load_images,
        shape=_image_shape,
        train=_pretexts,
        tests=_pretext_tests,
        pretrain=_one_pretext,
    ),
    "ssl-series": Family(
        "forecasting the next step of pen strokes or any series; a task is a character, writer or series",
        ("forecast-mlp", "forecast-lstm"),
        frozenset({"model", "width", "window", "horizon", "group", "held_out"}),
        "Omniglot's strokes_background zip or folder, .csv or .npy files; none: random waves",
        load=_load_series,
        shape=_series_shape,
        train=_series,
        tests=lambda part, source, device: {"unseen groups": _series(part, source, device, training=False)},
        pretrain=_series,
        loss=F.mse_loss,
    ),
    "ssl-text": Family(
        "telling masked characters; a task is a passage",
        ("transformer",),
        frozenset({"model", "width", "length", "passage", "masked", "held_out"}),
        "UTF-8 text files or folders of them",
        load=_load_text,
        shape=_text_shape,
        train=_text,
        tests=lambda part, source, device: {"unseen passages": _text(part, source, device, training=False)},
        pretrain=_text,
        optional=False,
    ),
}
"""By the name that `fastmeta train` takes."""
