"""The infinite-width engine: covariances of activations, layer by layer.

A rule maps the covariances of a layer's input to those of its output. In the order of reading:

- `pointwise`: what is computed, `Covariance(nngp, ntk)`, and a rule for one pair of positions,
  `Pointwise`.
- `state`: what a rule transforms, `Kernel`: covariances between two sets (`Vectors` or `Planes`),
  and the variances of each set by itself (`Side`). Vectors know the `Opening` of each pair's angle,
  which `openings` takes from inputs and sums.
- `layer_rules`: the rule of every layer. An activation's is a `Dual` of Gaussian pairs: closed forms in
  `duals`, `polynomials`, `exponentials` and `logistic`, with `small_angles`; sums in
  `quadrature`, and in `pieces` for functions with kinks.
- `halves`: two halves of the features, which couplings change in turn.
- `depth` and `repeats`: deep networks of vectors, whose equal layers become a loop.
- `planes`: images, one displacement at a time, with `pairing` (which images meet, what a recipe is
  asked for, and where it is evaluated), `windows` (sums that slide), `regrouping` (windows that move
  apart), `loops` (over displacements), `periodic` (all pairs of positions at once, where planes do
  not fit).
- `readouts`: from images to vectors, layer by layer, or by the one GPU program of `gpu`, which takes
  the list of steps in `chains`.
- `cpu`: the same steps by a program for a processor, which `machine` (with `machine_pools` and `instructions`)
  writes in LLVM's language: `tasks` asks for it, `plans` cuts the steps at pools into stages, `passes`
  cuts a stage into passes over planes, `tables` writes down what they read, and `elementary` reads
  the duals.

The path of a pair of images (x1, x2) through Conv, Relu and GlobalAvgPool:

1. `state.input_kernel` makes a `Kernel` whose `cross` is the recipe `planes.source`: no covariance
   is computed yet, only variances of pixels, which depend on one image.
2. The rule of Conv (`layer_rules.conv_rule`) appends means over windows (`Planes.window`) and then W_std
   and b_std (`Planes.pointwise`); that of Relu appends its dual. The recipe grows, and so does its
   `chain`, the same steps as a list.
3. GlobalAvgPool asks for all displacements (`readouts.mean_over_pairs`): `Request` says which
   images are lanes of a plane and on which canvas, `Planes.build` prepares what all displacements
   share, and a loop evaluates the recipe at one `Displacement` after the other and adds up. On a
   GPU `gpu` takes the chain instead, on a CPU `cpu`, if llvmlite is installed. Flatten asks for the
   displacement zero alone.
4. The head has `Vectors`, and dense layers go on with them. The diagonal k(x, x) never comes from
   these sums: it is the path of `Kernel.own`, by the exact formulas at correlation one.
"""
