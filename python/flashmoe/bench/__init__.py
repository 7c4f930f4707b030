"""Measuring: visits in processes of their own, settings in turns, results as one document."""
