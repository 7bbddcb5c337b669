"""Every family of tasks that the commands know: the one place that says what it is, reads, and is learned by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from fastmeta.models.clustering_loss import ClusteringLoss

from . import builders as build

if TYPE_CHECKING:
    pass
from .base import Family

_NETWORK = {"model", "channels", "zero_head"}
_FEW_SHOT = {*_NETWORK, "ways", "train_shots", "augment", "augment_classes", "bn_statistics"}
_IMAGES = {"image_size", "held_out"}
_CONV = ("conv4", "conv4-flat", "conv4-pooled", "resnet18")
_IMAGE_DATA = "folders or zip files of images, Omniglot's, CIFAR-10's .bin files or a .npy array; none: random glyphs"

FAMILIES: dict[str, Family] = {
    "sinusoid": Family(
        "sine curves of random amplitude and phase (Finn et al. 2017)",
        ("sinusoid-mlp",),
        frozenset({"model"}),
        "",
        load=lambda part, paths: None,
        shape=lambda part, source: (),
        train=build.sinusoids,
        tests=lambda part, source, device: {"new sinusoids": build.sinusoids(part, source, device)},
        loss=F.mse_loss,
        report="scores",
    ),
    "omniglot": Family(
        "few-shot classification of handwritten characters (Lake et al. 2015)",
        _CONV,
        frozenset({*_FEW_SHOT, "within_alphabet", "rotations", "mirrored", "alphabets", "exclude_alphabets"}),
        "Omniglot's zip files, or folders they unpack to",
        load=build.read_characters,
        shape=build.image_shape,
        train=build.characters,
        tests=lambda part, source, device: {
            "new episodes of the characters trained on": build.characters(part, source, device, training=False)
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
        train=build.glyphs,
        tests=lambda part, source, device: {"new glyphs": build.glyphs(part, source, device, training=False)},
    ),
    "umtra": Family(
        "few-shot tasks from images without labels, by augmentation (Khodadadeh et al. 2019)",
        _CONV,
        frozenset({*_FEW_SHOT, *_IMAGES} - {"train_shots", "augment_classes"}),
        _IMAGE_DATA,
        load=build.read_images,
        shape=build.image_shape,
        train=build.umtra,
        tests=build.label_tests,
    ),
    "cactus": Family(
        "few-shot tasks from images without labels, by clustering an embedding (Hsu et al. 2019)",
        _CONV,
        frozenset({*_FEW_SHOT, *_IMAGES, "clusters", "partitions", "embedding", "latent"}),
        _IMAGE_DATA,
        load=build.read_images,
        shape=build.image_shape,
        train=build.cactus,
        tests=build.label_tests,
    ),
    "cluster": Family(
        "clustering autoencoder over small unlabelled image sets of few classes (after Xie et al. 2016)",
        ("autoencoder",),
        frozenset({*_IMAGES, "model", "channels", "latent", "ways", "augment", "augment_classes"}),
        _IMAGE_DATA,
        load=build.read_images,
        shape=build.image_shape,
        train=build.image_sets,
        tests=lambda part, source, device: {"unseen classes": build.anomalies(part, source, device)},
        pretrain=build.image_sets,
        loss=ClusteringLoss(),
        pretrain_loss=ClusteringLoss(weight=0.0),  # reconstruction alone, as Xie et al. begin
        report="clusters",
    ),
    "ssl-images": Family(
        "which transformation was applied: rotation, patch position, order of tiles or colours, zoom",
        _CONV,
        frozenset({*_FEW_SHOT, *_IMAGES, "pretexts", "new_pretext"} - {"augment_classes"}),
        _IMAGE_DATA,
        load=build.read_images,
        shape=build.image_shape,
        train=build.pretexts,
        tests=build.pretext_tests,
        pretrain=build.one_pretext,
        probe=build.probe_images,
    ),
    "ssl-series": Family(
        "forecasting the next step of pen strokes or any series; a task is a character, writer or series",
        ("forecast-mlp", "forecast-lstm"),
        frozenset({"model", "width", "window", "horizon", "group", "held_out"}),
        "Omniglot's strokes_background zip or folder, .csv or .npy files; none: random waves",
        load=build.read_series,
        shape=build.series_shape,
        train=build.series,
        tests=lambda part, source, device: {"unseen groups": build.series(part, source, device, training=False)},
        pretrain=build.series,
        loss=F.mse_loss,
    ),
    "ssl-text": Family(
        "telling masked characters; a task is a passage",
        ("transformer",),
        frozenset({"model", "width", "length", "passage", "masked", "held_out"}),
        "UTF-8 text files or folders of them",
        load=build.read_text,
        shape=build.text_shape,
        train=build.text,
        tests=lambda part, source, device: {"unseen passages": build.text(part, source, device, training=False)},
        pretrain=build.text,
        optional=False,
    ),
}
"""By the name that `fastmeta train` takes."""
