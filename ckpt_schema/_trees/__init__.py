"""What a tree is, held against a layout: flattened, matched, checked, compared, read off.

- `containers` flattens a tree to key paths, and builds one anew. `raw_bytes` and `foreign` say which
  leaves are arrays, though they do not look so.
- `conformance` holds a tree against a layout: `slots` finds the row of a key path; `leaf_faults`,
  `chains` and `undeclared` say what is wrong, by leaves, by parts of an optimizer, by Variables.
- `inference` reads a layout off a tree that nobody has declared, for the public `infer`:
  `repeated_keys` says which of its nodes are lists or stacks, `optimizer_parts` what its optimizer
  state is made of.
- `defaults` and `abstract_states` make leaves and states, `placement` says where arrays lie, and
  `equality` compares two trees to the last bit. `jitted` is for what runs under `jax.jit`.
"""
