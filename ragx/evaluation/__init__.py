"""Scores with their uncertainty: metrics, intervals, gates, reports."""
