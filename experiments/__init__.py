"""Experiments: each module declares a configuration, measures, says what it expects and draws its figures.

    python -m experiments list
    python -m experiments run NAME --help  # its fields, their meanings, bounds and values
    python -m experiments run NAME [--preset laptop] [--set train.epochs=20 --set alphas=1,10,inf] [--out runs]
    python -m experiments show RUN_DIR
    python -m experiments draw RUN_DIR
    python -m experiments compare RUN_DIR RUN_DIR [--csv]

A module of this package is an experiment if it has `PRESETS`, a dictionary of frozen dataclasses,
and `measure(config, store)`, `facts(config, arrays)` and `draw(config, arrays)`
(`experiments.harness.running` says what each of them does, and stores, summarizes and shows). Its
docstring holds the command, the expected time and the expected numbers; those of its dataclasses
hold the meaning of every field, whose types are its bounds (`experiments.harness.bounds`).
"""
