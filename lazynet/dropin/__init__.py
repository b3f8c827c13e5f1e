"""Other libraries' names, argument order and conventions, in front of lazynet: no mathematics lives here.

`stax`, `predict`, `empirical` and `batch` are those of neural-tangents, `kymatio` that of kymatio.
"""
