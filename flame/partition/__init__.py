"""Which client holds which training samples."""
