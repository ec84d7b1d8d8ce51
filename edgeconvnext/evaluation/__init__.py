"""Measuring: accuracy, outputs, timing, and the gates they are judged by."""
