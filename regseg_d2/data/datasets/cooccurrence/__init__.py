"""The built-in data set ``cooccurrence``: objects that lean on their surroundings, drawn from a seed.

CAR's claim is that class-aware losses make a network lean less on which classes occur together. Here
that is measured: in ``cooccurrence_train`` and ``cooccurrence_val`` each kind of object almost always
stands on its own ground (cow and hen on grass, camel on sand, boat and duck on water, car on road), in
``cooccurrence_swapped`` never. Objects come in pairs of similar shape and palette (cow and camel, hen
and duck, boat and car) whose grounds differ, so the ground is a tempting short cut.
"""

from regseg_d2.data.datasets.cooccurrence.build import (
    CooccurrenceParameters,
    cooccurrence_folder,
    register_cooccurrence,
)

__all__ = ["CooccurrenceParameters", "cooccurrence_folder", "register_cooccurrence"]
