"""Variants that are compared: studies, their runs, and the report."""
