"""Data sets as `Data(x, y)` records on the host, and the few transformations that experiments state explicitly.

Every function here returns NumPy arrays, whatever it was given, except `crop_and_flip`, which runs
inside a compiled step: 60,000 photographs then exist once, in ordinary memory, and training decides
what goes to the device (`jax.device_put(data)` moves everything). CIFAR-10 is float32; the small
data sets have JAX's default floating-point dtype, float64 where `jax_enable_x64` is set.
`jax.tree.map(lambda a: a.astype(np.float64), data)` changes it.

Nothing is standardized behind the caller's back: a data set comes as it was published, pixels
scaled to [0, 1].
"""

from __future__ import annotations

from lazynet.datasets.augmentation import crop_and_flip
from lazynet.datasets.checks import check_data
from lazynet.datasets.cifar import CIFAR10_ARCHIVE, cifar10, data_root
from lazynet.datasets.download import Archive
from lazynet.datasets.labels import center_targets, one_hot, one_hot_centered
from lazynet.datasets.preprocessing import standardize, zca
from lazynet.datasets.sampling import balanced_subset
from lazynet.datasets.small import digits, tabular
from lazynet.datasets.teacher import teacher_student

__all__ = [
    "CIFAR10_ARCHIVE",
    "Archive",
    "balanced_subset",
    "center_targets",
    "check_data",
    "cifar10",
    "crop_and_flip",
    "data_root",
    "digits",
    "one_hot",
    "one_hot_centered",
    "standardize",
    "tabular",
    "teacher_student",
    "zca",
]
