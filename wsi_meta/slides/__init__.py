"""A slide as callers see it: uint8 RGB arrays at a level or at an mpp, whoever reads it."""
