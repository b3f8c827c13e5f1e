"""The infinite-width engine: covariances of activations, layer by layer."""
