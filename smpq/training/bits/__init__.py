"""Training that finds the bits of its layers: what BSQ, SDQ and their like share."""
