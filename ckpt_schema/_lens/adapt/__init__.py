"""From two trees that nobody has declared to a lens: what names and shapes settle, and lines to paste for the rest."""
