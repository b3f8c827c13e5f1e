"""The infinite-width engine: covariances of activations, layer by layer.

A rule maps the covariances of a layer's input to those of its output. In the order of reading:

- `state`: what a rule transforms, `Kernel`: covariances between two sets, `Vectors` or `Planes`,
  and variances of each.
- `rules`: the rule of every layer; `duals`, `quadrature` and `angles`: expectations of activations
  for a Gaussian pair.
- `depth` and `repeats`: deep networks of vectors, whose equal layers become a loop.
- `planes`: images, one displacement at a time, with `pairing` (which images meet, and what is asked
  of a recipe), `windows` (sums that slide), `pooling` (windows that move apart), `loops` (over
  displacements), `periodic` (all pairs of positions at once, where planes do not fit).
- `readouts`: from images to vectors, layer by layer, or by the one GPU program of `gpu`.
"""
