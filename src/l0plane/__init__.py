"""l0plane: every trained sparse autoencoder is a point in the L0-MSE plane."""

from importlib.metadata import version

__version__ = version("l0plane")
