"""Data sets, whole and in memory."""
