"""Published coordinates, masks and weighted masks as seeds: elements of a grid with weights."""

from ketanet.seeds.build import seed_weights, seeds_from_coordinates
from ketanet.seeds.images import seeds_from_images
from ketanet.seeds.load import holds_images, load_seeds
from ketanet.seeds.spaces import mni_to_talairach, talairach_to_mni
from ketanet.seeds.tables import read_coordinates
from ketanet.seeds.write import coordinates_table, seeds_table, write_seeds

__all__ = [
    "coordinates_table",
    "holds_images",
    "load_seeds",
    "mni_to_talairach",
    "read_coordinates",
    "seed_weights",
    "seeds_from_coordinates",
    "seeds_from_images",
    "seeds_table",
    "talairach_to_mni",
    "write_seeds",
]
