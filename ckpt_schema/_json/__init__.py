"""Layouts and lenses as JSON: data that nothing is evaluated or imported for."""
