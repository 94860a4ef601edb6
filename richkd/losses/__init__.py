"""Distillation losses, one a file.

A loss is a plain function: it takes the student's and the teacher's tensors and returns a scalar.
A loss does not detach anything: the caller hands in a teacher without gradient. `ContrastiveMemory`
is a module, because its loss needs a memory of all training samples.

CONTRIBUTING.md says how to add a loss. An import here is needed only for
`from richkd.losses import <name>`.
"""

from richkd.losses.at import at
from richkd.losses.crd import SHARED_ABOVE, ContrastiveMemory
from richkd.losses.dist import dist
from richkd.losses.dkd import dkd
from richkd.losses.kd import kd
from richkd.losses.mlkd import mlkd
from richkd.losses.nst import nst
from richkd.losses.pkt import pkt
from richkd.losses.rkd import rkd
from richkd.losses.sp import sp
from richkd.losses.standardize import standardize

__all__ = [
    "SHARED_ABOVE",
    "ContrastiveMemory",
    "at",
    "dist",
    "dkd",
    "kd",
    "mlkd",
    "nst",
    "pkt",
    "rkd",
    "sp",
    "standardize",
]
