"""Measure what a rotary embedding costs a model on text, and search for a better one."""
