"""Files of safetensors: their headers, byte ranges read from them, and how they are laid out to be written."""
