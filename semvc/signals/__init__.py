"""One file per coded signal: a frozen value and one coding function."""
