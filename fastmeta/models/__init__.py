"""The networks of the papers, as plain modules; `build_model` makes those of the command line by name."""

from __future__ import annotations

from .autoencoder import ClusteringAutoencoder as ClusteringAutoencoder
from .clustering_loss import ClusteringLoss as ClusteringLoss
from .few_shot import conv4 as conv4
from .few_shot import sinusoid_mlp as sinusoid_mlp
from .film import ContextMLP as ContextMLP
from .film import FiLM as FiLM
from .film import FilmConv4 as FilmConv4
from .forecast import ForecastLSTM as ForecastLSTM
from .forecast import forecast_mlp as forecast_mlp
from .gaussian import Gaussian as Gaussian
from .generator import ImageGenerator as ImageGenerator
from .modulated_siren import ModulatedSiren as ModulatedSiren
from .padded import PaddedBatchNorm2d as PaddedBatchNorm2d
from .padded import PaddedConv4 as PaddedConv4
from .per_step_norm import PerStepBatchNorm as PerStepBatchNorm
from .per_step_norm import per_step_batch_norm as per_step_batch_norm
from .policies import CategoricalPolicy as CategoricalPolicy
from .policies import GaussianPolicy as GaussianPolicy
from .policies import navigation_policy as navigation_policy
from .registry import MODELS as MODELS
from .registry import build_model as build_model
from .registry import head_of as head_of
from .resnet import resnet18 as resnet18
from .siren import Sine as Sine
from .siren import siren as siren
from .transformer import MaskedTransformer as MaskedTransformer
