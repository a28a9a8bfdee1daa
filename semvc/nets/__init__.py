"""Networks that semvc owns, and the maps that they are conditioned on."""
