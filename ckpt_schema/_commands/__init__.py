"""What the commands do, thinly over the library."""
