"""From two layouts and rules to cells: what joins, what is private, what is open.

All names and messages are here.
"""
