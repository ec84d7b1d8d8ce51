"""Records that runs write and reports show; no algorithm and no rendering."""
