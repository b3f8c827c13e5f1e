"""Networks: `Model(init, apply, trace, kernel, name)`, layers, activations, first weights, and those of other people.

`model` says what a network is and how layers combine, `layers` and `activations` what they are made
of, `initializers` draws other first weights, `zoo` holds whole networks, `foreign` those written in
flax, equinox or neural-tangents.
"""
