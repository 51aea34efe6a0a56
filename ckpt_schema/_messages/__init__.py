"""What the library says: faults, and the one text of many."""
