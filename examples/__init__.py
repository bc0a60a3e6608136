"""Example models for trying predictd, among them the demo's."""
