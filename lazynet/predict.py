"""`import lazynet.predict`, one line to change for users of neural-tangents: the names of `lazynet.dropin.predict`."""

from lazynet.dropin.predict import *  # noqa: F403
from lazynet.dropin.predict import __all__ as __all__
