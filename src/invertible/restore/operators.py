"""Every operator in one place: what can have happened to a picture."""

from invertible.restore.blur import Blur, gaussian_kernel
from invertible.restore.compose import Composed, as_operator
from invertible.restore.downsample import Downsample
from invertible.restore.jpeg import Jpeg
from invertible.restore.mask import Mask
from invertible.restore.operator import Identity, Operator, check_operator

__all__ = [
    "Blur",
    "Composed",
    "Downsample",
    "Identity",
    "Jpeg",
    "Mask",
    "Operator",
    "as_operator",
    "check_operator",
    "gaussian_kernel",
]
