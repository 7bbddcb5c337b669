"""How each family's data are read and its tasks made, from the settings of a run. `families` says which is whose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fastmeta.tasks import (
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
from fastmeta.tasks.cactus import Clustered
from fastmeta.tasks.derived import Unlabelled

if TYPE_CHECKING:
    from .settings import TaskConfig

Source = Characters | Images | Clustered | Series | Text
"""Data of a run."""


# Sinusoids and Omniglot. ------------------------------------------------------------------------------------------


def sinusoids(part: TaskConfig, source: Source | None, device: torch.device) -> Sinusoid:
    return Sinusoid(shots=part.shots, queries=part.queries, device=device)


def read_characters(part: TaskConfig, paths: Sequence[str]) -> Characters:
    return load_omniglot(paths).select(keep=part.alphabets, drop=part.exclude_alphabets)


def characters(part: TaskConfig, source: Source | None, device: torch.device, *, training: bool = True) -> FewShot:
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


def read_images(part: TaskConfig, paths: Sequence[str]) -> Images:
    size = part.image_size or (part.shape[1] if part.shape else None)
    return load_images(paths, size=size) if paths else draw_glyphs(size=size or 28)


def image_shape(part: TaskConfig, source: Source | None) -> tuple[int, ...]:
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


def glyphs(part: TaskConfig, source: Source | None, device: torch.device, *, training: bool = True) -> Glyphs:
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


def umtra(part: TaskConfig, source: Source | None, device: torch.device) -> UMTRA:
    images, _ = _by_class(part, source)
    return UMTRA(images, ways=part.ways, queries=part.queries, augment=part.augment or 1.0, device=device)


def label_tests(part: TaskConfig, source: Source | None, device: torch.device) -> dict[str, TaskFamily]:
    images, unseen = _by_class(part, source)
    if images.labels is None:
        return {"tasks of its own, as the images have no labels": UMTRA(images, ways=part.ways, device=device)}
    title = "labelled episodes" if unseen is images else "labelled episodes of unseen classes"
    return {f"{title}, {part.ways}-way {part.shots}-shot": _labelled(part, unseen, device)}


def training_images(part: TaskConfig, source: Source | None) -> Images:
    """What the clusters of CACTUs are made of."""
    return _by_class(part, source)[0].unlabelled()


def cactus(part: TaskConfig, source: Source | None, device: torch.device) -> CACTUs:
    if not isinstance(source, Clustered):
        raise ValueError(
            "task cactus needs clusters of its images: Pipeline.train makes them, tasks.partition those of an embedding"
        )
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


def pretexts(part: TaskConfig, source: Source | None, device: torch.device) -> SelfSupervised:
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


def one_pretext(part: TaskConfig, source: Source | None, device: torch.device) -> SelfSupervised:
    """Its transformations keep their numbers from task to task."""
    images, _ = _by_image(part, source)
    ways, counts = part.ways, {"shots": part.shots, "queries": part.queries}
    return SelfSupervised(
        images, part.pretexts[:1], ways=ways, shuffle=False, augment=part.augment, device=device, **counts
    )


def pretext_tests(part: TaskConfig, source: Source | None, device: torch.device) -> dict[str, TaskFamily]:
    _, unseen = _by_image(part, source)
    ways, shots, queries = part.ways, part.shots, part.queries
    tests: dict[str, TaskFamily] = {
        f"{title}, {ways}-way {shots}-shot": SelfSupervised(
            unseen, names, ways=ways, shots=shots, queries=queries, device=device
        )
        for title, names in (
            ("pretexts trained on", part.pretexts),
            (f"new pretext {part.new_pretext}", (part.new_pretext,)),
        )
    }
    labelled = _of_large_classes(unseen, shots + queries)
    if labelled.labels is not None and len(labelled.labels.unique()) >= ways:
        tests[f"labels, {ways}-way {shots}-shot"] = _labelled(part, labelled, device)
    return tests


def _of_large_classes(images: Images, least: int) -> Images:
    """The images of classes that have at least so many: of twenty drawings a character few are kept for evaluation."""
    if images.labels is None:
        return images
    classes, counts = images.labels.unique(return_counts=True)
    return images.take(torch.isin(images.labels, classes[counts >= least]).nonzero().squeeze(1))


def probe_images(part: TaskConfig, source: Source | None) -> tuple[Images, Images] | None:
    """Labelled images for a linear classifier, and others to score it: halves where the run has seen none of them."""
    images = _images(source)
    return None if images.labels is None else images.split(part.held_out or 0.5)


def image_sets(part: TaskConfig, source: Source | None, device: torch.device) -> Unlabelled:
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


def anomalies(part: TaskConfig, source: Source | None, device: torch.device) -> ClassEpisodes:
    """Episodes of one class more than there are clusters: the last one is the anomaly."""
    _, unseen = _by_class(part, source)
    ways, shots, queries = part.ways + 1, part.shots, part.queries
    return ClassEpisodes(unseen.table(), ways=ways, shots=shots, queries=queries, device=device)


# Series and text. -------------------------------------------------------------------------------------------------


def read_series(part: TaskConfig, paths: Sequence[str]) -> Series:
    return load_series(paths, group=part.group) if paths else draw_waves()


def series(part: TaskConfig, source: Source | None, device: torch.device, *, training: bool = True) -> Forecast:
    assert isinstance(source, Series)
    if part.held_out:
        source = source.split(part.held_out)[not training]
    window, horizon = part.window, part.horizon
    return Forecast(source, window=window, horizon=horizon, shots=part.shots, queries=part.queries, device=device)


def series_shape(part: TaskConfig, source: Source | None) -> tuple[int, ...]:
    assert isinstance(source, Series)
    return part.window, part.horizon, source.features


def read_text(part: TaskConfig, paths: Sequence[str]) -> Text:
    if not paths:
        raise ValueError("task ssl-text needs text: name UTF-8 files or folders with --data")
    return load_text(paths, vocabulary=part.vocabulary or None)


def text(part: TaskConfig, source: Source | None, device: torch.device, *, training: bool = True) -> MaskedText:
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


def text_shape(part: TaskConfig, source: Source | None) -> tuple[int, ...]:
    assert isinstance(source, Text)
    return source.symbols, part.length
