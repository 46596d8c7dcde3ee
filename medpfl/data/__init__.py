"""Images: reading, preprocessing, the datasets, and which images are attacked."""

from medpfl.data.dataset import DatasetSource, ImageSet, LoadedData
from medpfl.data.folder import ImageFolder
from medpfl.data.hospital import HospitalImages
from medpfl.data.kaggle import KaggleDataset
from medpfl.data.phantom import Phantom
from medpfl.data.preprocess import Preprocess

__all__ = [
    "DatasetSource",
    "HospitalImages",
    "ImageFolder",
    "ImageSet",
    "KaggleDataset",
    "LoadedData",
    "Phantom",
    "Preprocess",
]
