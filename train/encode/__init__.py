"""Encoding a dataset once, before the first step: what frozen parts make of it goes to the cache."""
