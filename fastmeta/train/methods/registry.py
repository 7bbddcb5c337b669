"""Every algorithm that the commands know: a new one is a file beside this one and a line here."""

from __future__ import annotations

from .abml import ABML_METHOD
from .base import AnyMethod
from .heads import ANIL_METHOD, BOIL_METHOD, CAVIA_METHOD
from .imaml import IMAML_METHOD
from .lstm import LSTM
from .maml import FOMAML_METHOD, MAML_METHOD, REPTILE_METHOD
from .metagan import METAGAN
from .metric import METAOPTNET, PROTO_MAML, PROTONET, R2D2_METHOD
from .rates import MAML_PLUS_PLUS, META_CURVATURE, META_SGD, SPARSE_MAML

METHODS: dict[str, AnyMethod] = {
    "maml": MAML_METHOD,
    "fomaml": FOMAML_METHOD,
    "reptile": REPTILE_METHOD,
    "meta-sgd": META_SGD,
    "maml++": MAML_PLUS_PLUS,
    "anil": ANIL_METHOD,
    "boil": BOIL_METHOD,
    "protonet": PROTONET,
    "r2d2": R2D2_METHOD,
    "metaoptnet-rr": METAOPTNET,
    "proto-maml": PROTO_MAML,
    "cavia": CAVIA_METHOD,
    "imaml": IMAML_METHOD,
    "meta-curvature": META_CURVATURE,
    "sparse-maml": SPARSE_MAML,
    "lstm": LSTM,
    "abml": ABML_METHOD,
    "metagan": METAGAN,
}
"""By the name that `--algorithm` takes."""
