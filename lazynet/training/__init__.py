"""Training of finite networks: a host loop over one compiled step.

`loop` trains, evaluates and records; `step` is what is compiled; `optimizers` those that commute
with the change of scale, and learning rates; `ensembles` many networks side by side;
`kept_activations` what the linearized model need not compute twice; `sharding` devices and
processes; `precision` what is computed in which dtype, and recomputed; `checkpoints` and `writers`
are files.
"""
