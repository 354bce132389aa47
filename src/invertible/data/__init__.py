"""Labelled images by name or from your own folder; batches that are the same on one machine and on many."""

from invertible.data.augment import Augmentation, Cutout, RandomCrop, RandomFlip
from invertible.data.batches import Batches
from invertible.data.dataset import ImageSet
from invertible.data.folder import read_folder
from invertible.data.lazy import LazyImageSet
from invertible.data.loading import load
from invertible.data.locate import cache_folder
from invertible.data.normalize import Normalize
from invertible.data.pictures import image_file
from invertible.data.points import PointBatches, PointSet
from invertible.data.registry import DataFile, DataSource, describe, names
from invertible.data.source import ImageSource
from invertible.data.spherical_bits import SphericalBits, spherical_bits
from invertible.data.splits import train_validation
from invertible.data.table import read_rows, read_table
from invertible.data.toys import toy, toy_names, toy_set

__all__ = [
    "Augmentation",
    "Batches",
    "Cutout",
    "DataFile",
    "DataSource",
    "ImageSet",
    "ImageSource",
    "LazyImageSet",
    "Normalize",
    "PointBatches",
    "PointSet",
    "RandomCrop",
    "RandomFlip",
    "SphericalBits",
    "cache_folder",
    "describe",
    "image_file",
    "load",
    "names",
    "read_folder",
    "read_rows",
    "read_table",
    "spherical_bits",
    "toy",
    "toy_names",
    "toy_set",
    "train_validation",
]
