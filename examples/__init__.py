"""Models to try predictd with; the demo's is here."""
