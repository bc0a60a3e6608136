"""What predictd keeps in MongoDB, and the embedded MongoDB itself; the layer that everything else stands on."""
