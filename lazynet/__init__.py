"""Is my network lazy, what is its kernel, what would the linearized model do?"""

from lazynet.layers import *
from lazynet.model import *
