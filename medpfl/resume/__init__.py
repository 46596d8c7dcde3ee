"""Continue a run or a sweep that did not end, in its own folder and as it was configured."""

from medpfl.resume.request import Request, read_request

__all__ = ["Request", "read_request"]
