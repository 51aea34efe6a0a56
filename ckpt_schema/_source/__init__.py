"""Layouts and lenses as Python text."""
