"""Helpers that several tests share: models without torch, workers that stop between two steps, oracles."""
