"""Tables, plots, cards and samples: rendering."""
