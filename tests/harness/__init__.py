"""What several tests share: models without torch, workers that can be held between two steps, oracles."""
