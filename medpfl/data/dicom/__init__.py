"""DICOM files: what their headers say of pixels and places, and nothing of patients."""
