"""What every kit's script is joined from, with a runtime's own part: Python 3.8 and its standard library alone."""
