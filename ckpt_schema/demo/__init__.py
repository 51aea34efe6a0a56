"""The demo: a small GPT trained in Linen goes on training in NNX, and back, with losses equal to the last bit."""
