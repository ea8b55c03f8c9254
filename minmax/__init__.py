"""Model level of Similarity Min-Max: day and night views look alike to the adapted model."""

from minmax.adapt import adapt, adaptation_losses
from minmax.byol import MomentumPair, ViewPair, byol_loss
from minmax.features import FeatureModel, InputNormalization, freeze, last_feature_layer
from minmax.keep import class_divergence, mix_weights
from minmax.similarity import feature_similarity

__all__ = [
    "FeatureModel",
    "InputNormalization",
    "MomentumPair",
    "ViewPair",
    "adapt",
    "adaptation_losses",
    "byol_loss",
    "class_divergence",
    "feature_similarity",
    "freeze",
    "last_feature_layer",
    "mix_weights",
]
