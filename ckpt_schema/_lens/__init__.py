"""Lenses: the pure core (digits, cells, codecs), rules, and the lens itself.

``derive`` makes cells, ``plan`` makes tasks, ``arrays`` runs them.
"""
