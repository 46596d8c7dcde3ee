"""The public datasets of the two papers: where they are, how they are laid out, how they were used.

Handles, folders and strides as in the notebooks published with "Privacy Risks Analysis and
Mitigation in Federated Learning for Medical Images" (arXiv 2311.06643).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from medpfl.data.select import PublishedSelection


@dataclass(frozen=True)
class CatalogueEntry:
    """One public dataset.

    Args:
        name: its name here, in ``conf/dataset`` and below ``$MEDPFL_DATA_ROOT``.
        title: its name on its page.
        handle: its Kaggle handle, ``owner/dataset``.
        inner: the folder inside the dataset that holds the splits; empty where there is none.
        splits: for each split the names its folder may have, the original one first.
        classes: the class folders, sorted.
        published: how the paper chose the images it attacked.
    """

    name: str
    title: str
    handle: str
    inner: str
    splits: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...]
    published: PublishedSelection

    @property
    def page(self) -> str:
        """The address of the dataset's page."""
        return f"https://www.kaggle.com/datasets/{self.handle}"

    def layout(self) -> str:
        """Return the expected folders, one a line."""
        split_folders = [names[0] for names in self.splits.values()]
        top = f"{self.name}/{self.inner}".rstrip("/")
        return "\n".join(
            f"{top}/{split}/{class_name}/*"
            for split in split_folders
            for class_name in self.classes
        )


_ENTRIES = (
    CatalogueEntry(
        name="melanoma",
        title="Melanoma Skin Cancer Dataset of 10000 Images",
        handle="hasnainjaved/melanoma-skin-cancer-dataset-of-10000-images",
        inner="melanoma_cancer_dataset",
        splits=MappingProxyType({"train": ("train",), "test": ("test",)}),
        classes=("benign", "malignant"),
        published=PublishedSelection(split="test", size=1000, stride=10),
    ),
    CatalogueEntry(
        name="covid",
        title="Covid-19 Image Dataset",
        handle="pranavraikokte/covid19-image-dataset",
        inner="Covid19-dataset",
        splits=MappingProxyType({"train": ("train",), "test": ("test", "val")}),
        classes=("Covid", "Normal", "Viral Pneumonia"),
        published=PublishedSelection(split="train", size=251, stride=3),
    ),
    CatalogueEntry(
        name="brain_mri",
        title="Brain Tumor MRI Dataset",
        handle="masoudnickparvar/brain-tumor-mri-dataset",
        inner="",
        splits=MappingProxyType({"train": ("Training",), "test": ("Testing",)}),
        classes=("glioma", "meningioma", "notumor", "pituitary"),
        published=PublishedSelection(split="train", size=5712, stride=54),
    ),
)

CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType({e.name: e for e in _ENTRIES})
