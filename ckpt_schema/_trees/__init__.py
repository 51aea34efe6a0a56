"""What a tree is, held against a layout: flattened, matched, checked, compared, read off."""
