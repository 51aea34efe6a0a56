"""Which changes of a layout break the checkpoints of a model, and which of its code."""
