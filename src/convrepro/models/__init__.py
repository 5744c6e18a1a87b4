"""Networks: built by name, their convolutions replaced, their weights loaded, exported."""
