"""`import lazynet.stax`, one line to change for users of neural-tangents: the names of `lazynet.dropin.stax`."""

from lazynet.dropin.stax import *  # noqa: F403
from lazynet.dropin.stax import __all__ as __all__
