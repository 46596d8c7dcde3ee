"""Errors that are for people: one message that names the fault and the fix."""


class MedpflError(Exception):
    """A mistake that the user can mend; the command line prints it without a traceback.

    The message says what is wrong, where, and what to do.
    """


class ConfigurationError(MedpflError, ValueError):
    """A setting that cannot work, found before any compute."""


class DataError(MedpflError):
    """A dataset that is missing, empty, unreadable or too small."""


class ThreatModelError(ConfigurationError):
    """An attack that needs a capability which the threat model withholds."""


FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What code that nobody of medpfl wrote may raise on inputs that it does not expect."""
