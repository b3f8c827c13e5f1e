"""Networks: `Model(init, apply, trace, kernel, name, inverse)`, layers, first weights, and those of other people.

`model` says what a network is and how layers combine, `layers` and `activations` what they are made
of, `invertible` holds networks whose inputs come back from their outputs, `hierarchical` layers
whose channels are a periodic axis, `initializers` draws other first weights, `zoo` holds whole
networks, `foreign` those of other libraries.
"""
