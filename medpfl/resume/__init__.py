"""Continue a run or a sweep that did not end, in its own folder and as it was configured."""

from medpfl.resume.request import Request, read_request
from medpfl.resume.run import resume_run
from medpfl.resume.sweep import continue_job, sweep_arguments

__all__ = ["Request", "continue_job", "read_request", "resume_run", "sweep_arguments"]
