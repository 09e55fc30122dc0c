"""Foreign spellings of a rotary embedding: one file each, read into and written from `spec.RopeSpec`."""
