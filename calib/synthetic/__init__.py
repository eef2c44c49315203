"""Calibration data without a sample of the user's."""
