"""What concerns rows: their outputs, the positions of streams and scans, dead letters, requests, and the datasets of
jobs.
"""
