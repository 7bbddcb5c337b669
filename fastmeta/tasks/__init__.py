"""Families of tasks, and the samplers that draw meta-batches of episodes from them."""

from __future__ import annotations

from .base import Episodes as Episodes
from .base import TaskFamily as TaskFamily
from .cactus import CACTUs as CACTUs
from .cactus import partition as partition
from .class_episodes import ClassEpisodes as ClassEpisodes
from .datasets.cifar import load_cifar10 as load_cifar10
from .datasets.class_table import ClassTable as ClassTable
from .datasets.image_sources import as_images as as_images
from .datasets.image_sources import load_images as load_images
from .datasets.images import Images as Images
from .datasets.omniglot import Characters as Characters
from .datasets.omniglot import load_omniglot as load_omniglot
from .datasets.one_shot_runs import Run as Run
from .datasets.one_shot_runs import load_runs as load_runs
from .datasets.one_shot_runs import stack_runs as stack_runs
from .datasets.series import Series as Series
from .datasets.series import as_series as as_series
from .datasets.series import draw_waves as draw_waves
from .datasets.series import load_series as load_series
from .datasets.text import Text as Text
from .datasets.text import as_text as as_text
from .datasets.text import load_text as load_text
from .drift import AlphabetStream as AlphabetStream
from .drift import DriftingSinusoids as DriftingSinusoids
from .few_shot import FewShot as FewShot
from .glyphs import Glyphs as Glyphs
from .glyphs import draw_glyphs as draw_glyphs
from .mixture import Mixture as Mixture
from .navigation import Journeys as Journeys
from .navigation import Navigation as Navigation
from .omniglot_splits import Parts as Parts
from .omniglot_splits import split_omniglot as split_omniglot
from .pixels import Pixels as Pixels
from .pretexts import PRETEXTS as PRETEXTS
from .pretexts import Pretext as Pretext
from .pretexts import SelfSupervised as SelfSupervised
from .quadratics import QuadraticModel as QuadraticModel
from .quadratics import Quadratics as Quadratics
from .quadratics import sum_of_squares as sum_of_squares
from .series import Forecast as Forecast
from .sinusoid import Sinusoid as Sinusoid
from .text import MaskedText as MaskedText
from .umtra import UMTRA as UMTRA
from .varied import VariedEpisodes as VariedEpisodes
