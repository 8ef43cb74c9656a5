"""Comparison, cases, backends and the list of bad inputs, which the tests share."""
