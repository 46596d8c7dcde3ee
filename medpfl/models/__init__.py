"""Networks under attack: the papers' CNNs, LeNet-5, ResNet-18 and torchvision's classifiers."""

from medpfl.models.base import ModelFactory
from medpfl.models.lenet import LeNet
from medpfl.models.resnet import ResNet18
from medpfl.models.resnet3d import ResNet18Volume
from medpfl.models.sigmoid_cnn import CPLCNN, DLGCNN, IDLGCNN
from medpfl.models.structure import last_linear
from medpfl.models.torchvision_model import TorchvisionModel

__all__ = [
    "CPLCNN",
    "DLGCNN",
    "IDLGCNN",
    "LeNet",
    "ModelFactory",
    "ResNet18",
    "ResNet18Volume",
    "TorchvisionModel",
    "last_linear",
]
