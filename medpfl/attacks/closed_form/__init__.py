"""What an update of one image gives away without any search: features, layers, the image."""

from medpfl.attacks.closed_form.start import ClosedForm

__all__ = ["ClosedForm"]
