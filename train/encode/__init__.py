"""Encoding a dataset once, before the first step: what frozen parts make of its images and captions goes to the cache."""
