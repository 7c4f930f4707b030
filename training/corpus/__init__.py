"""The seeded grammar that writes every sentence the demo model is trained on."""
