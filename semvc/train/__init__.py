"""Training of the bundled models: one loop, one recipe a model."""
