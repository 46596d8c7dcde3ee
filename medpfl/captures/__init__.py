"""Updates captured from real federations, as folders of plain files; see docs/capture-format.md."""

from medpfl.captures.manifest import Defense, Framework, Manifest
from medpfl.captures.read import CapturedUpdate, CaptureFolder, load_captures, read_captures
from medpfl.captures.source import FileSource
from medpfl.captures.write import CaptureWriter, write_capture

__all__ = [
    "CaptureFolder",
    "CaptureWriter",
    "CapturedUpdate",
    "Defense",
    "FileSource",
    "Framework",
    "Manifest",
    "load_captures",
    "read_captures",
    "write_capture",
]
