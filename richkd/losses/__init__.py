"""Distillation losses, one a file.

Plain functions take the student's and the teacher's tensors and return a scalar. They never
detach: a teacher that must not learn is handed in without gradient. `ContrastiveMemory` is a
module because its loss needs a memory of every training sample.
"""

from richkd.losses.at import at
from richkd.losses.crd import SHARED_ABOVE, ContrastiveMemory
from richkd.losses.dkd import dkd
from richkd.losses.kd import kd
from richkd.losses.nst import nst
from richkd.losses.pkt import pkt
from richkd.losses.rkd import rkd
from richkd.losses.sp import sp
from richkd.losses.standardize import standardize

__all__ = [
    "SHARED_ABOVE",
    "ContrastiveMemory",
    "at",
    "dkd",
    "kd",
    "nst",
    "pkt",
    "rkd",
    "sp",
    "standardize",
]
