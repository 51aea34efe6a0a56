"""What a translation must give, in plain NumPy on nested dicts: it shares no code with what it tests.

`values` makes arrays of every dtype with the worst bits there are; `cases` says for each kind of difference between two
layouts what both sides hold; `places` puts leaves where a program may have them; `sweep` compares all of it with a lens.
"""
