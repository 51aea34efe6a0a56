"""What a layout is: key paths, sizes, leaves, rows, and the schema classes that they are read off.

No trees.
"""
