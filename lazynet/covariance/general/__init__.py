"""The general way: covariances of all pairs of positions, in any number of dimensions.

Planes (`lazynet.covariance.planes`) are the fast way for images; what they do not cover is done
here, by the same rules. In the order of reading: `families` (how windows act along one axis),
`positions` (the state), `layer_rules` and `attention` (rules of layers that only this way has).
"""
