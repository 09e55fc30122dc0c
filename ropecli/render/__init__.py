"""Values → tables, JSON and error lines, a file for each kind of value: the only package that knows rich."""
