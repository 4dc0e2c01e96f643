"""Sections of book/results.md, each made from rows of book/results."""
