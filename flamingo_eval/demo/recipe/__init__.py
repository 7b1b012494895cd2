"""How the demo's checkpoint was trained."""
